// Stacks are written by the host: a function's own way of doing it would be given the host's functions.
// @reply [false,"string","Error: x"]
Error.prepareStackTrace = (error, sites) => sites;
() => {
  const { stack } = new Error('x');
  return [stack.includes('ext:'), typeof stack, stack.split('\n')[0]];
};
