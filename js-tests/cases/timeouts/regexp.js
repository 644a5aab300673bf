// A regular expression that backtracks for ever.
// @wall-ms 300
// @call spin
// @error wall_timeout
// @call work
// @reply work
(subject, payload) => {
  if (String.fromCharCode(...payload) === 'spin') /^(a+)+$/.test(`${'a'.repeat(60)}b`);
  return payload;
};
