// A loop ends at its limit, and the next call works.
// @wall-ms 300
// @call spin
// @error wall_timeout
// @call work
// @reply work
(subject, payload) => {
  if (String.fromCharCode(...payload) === 'spin') for (;;);
  return payload;
};
