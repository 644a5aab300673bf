// @call
// @reply 1
// @call
// @reply 2
let calls = 0;
export default () => `${(calls += 1)}`;
