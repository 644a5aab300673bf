// Modules are strict code: writing to something frozen throws.
// @var GREETING=hello
// @error exception
// @error-name TypeError
export default (msg, env) => {
  env.vars.GREETING = 'changed';
};
