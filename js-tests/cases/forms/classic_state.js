// The top level runs once; what it makes lives as long as the function.
// @call
// @reply 1
// @call
// @reply 2
let calls = 0;
() => `${(calls += 1)}`;
