// Termination is no exception: it cannot be caught.
// @wall-ms 300
// @call spin
// @error wall_timeout
// @call work
// @reply work
(subject, payload) => {
  while (String.fromCharCode(...payload) === 'spin') {
    try {
      for (;;);
    } catch {
      continue;
    } finally {
      continue;
    }
  }
  return payload;
};
