// The signal of the context is aborted when the time is up; the answer is the timeout all the same.
// @wall-ms 300
// @error wall_timeout
// @log INFO aborted TimeoutError
export default (msg, env, ctx) =>
  new Promise((resolve) => {
    setTimeout(resolve, 60000);
    ctx.signal.addEventListener('abort', () => console.log('aborted', ctx.signal.reason.name));
  });
