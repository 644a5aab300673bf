// A promise that fails while the module loads is no reason for it not to load.
// @reply fine
// @log-contains ERROR Uncaught (in promise) Error: nobody looks
Promise.reject(new Error('nobody looks'));
const late = Promise.reject(new Error('handled late'));
await null;
late.catch(() => {});
export default () => 'fine';
