// The developer reads the stack in the function's log; the caller gets one line.
// @error exception TypeError: x
// @log-contains ERROR file:///logged_with_stack.js:6:9
const fail = () => {
  // The line that the log names:
  throw new TypeError('x');
};
() => fail();
