// @var GREETING=hello
// @var EMPTY=
// @reply {"EMPTY":"","GREETING":"hello"}
export default (msg, env) => env.vars;
