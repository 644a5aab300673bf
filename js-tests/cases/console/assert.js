// @log ERROR Assertion failed: one
// @reply
() => {
  console.assert(true, 'nothing');
  console.assert(false, 'one');
};
