// Only async generators stream; a plain one is an object like any other.
// @reply {}
() =>
  (function* () {
    yield 1;
  })();
