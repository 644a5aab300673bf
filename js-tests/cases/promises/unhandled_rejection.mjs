// A promise that nobody waits for and that fails does not fail the call.
// @call
// @reply fine
// @call
// @reply fine
export default () => {
  Promise.reject(new Error('nobody looks'));
  return 'fine';
};
