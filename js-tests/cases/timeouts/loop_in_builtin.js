// The time goes into a builtin, which V8 interrupts less readily than a loop.
// @wall-ms 300
// @call spin
// @error wall_timeout
// @call work
// @reply work
(subject, payload) => {
  if (String.fromCharCode(...payload) === 'spin') for (;;) new Array(1000).fill(1);
  return payload;
};
