// Code of the function that runs while its result is being encoded counts, too.
// @wall-ms 300
// @call spin
// @error wall_timeout
// @call work
// @reply "work"
(subject, payload) => {
  const text = String.fromCharCode(...payload);
  return { toJSON: () => { while (text === 'spin'); return text; } };
};
