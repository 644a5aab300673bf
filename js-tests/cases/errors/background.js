// An exception that belongs to no call, here a timer's, goes to the log with its stack.
// @reply started
// @log-contains ERROR file:///background.js:6:9
const fail = () => {
  // The line that the log names:
  throw new TypeError('x');
};
() => {
  setTimeout(fail, 1);
  return 'started';
};
