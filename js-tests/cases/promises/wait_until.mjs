// The reply does not wait for `waitUntil`, the log line comes all the same.
// @reply first
// @log INFO afterwards
export default (msg, env, ctx) => {
  ctx.waitUntil(new Promise((resolve) => setTimeout(resolve, 5)).then(() => console.log('afterwards')));
  return 'first';
};
