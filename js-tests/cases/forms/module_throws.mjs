// @load-error TypeError: at the top
// @load-error file:///module_throws.js:6:9
// @load-error throw new TypeError('at the top');
await null;
const fail = () => {
  throw new TypeError('at the top');
};
fail();
export default () => 1;
