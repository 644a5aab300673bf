// @load-error SyntaxError
// @load-error :4:
export default (msg) => {
  return msg +;
};
