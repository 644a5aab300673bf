// A comparator that never ends a sort.
// @wall-ms 300
// @call spin
// @error wall_timeout
// @call work
// @reply work
(subject, payload) => {
  if (String.fromCharCode(...payload) === 'spin') [3, 1, 2].sort(() => { for (;;); });
  return payload;
};
