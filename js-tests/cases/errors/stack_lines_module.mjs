// @error exception Error: deep
// @stack at inner
// @stack :5:9
function inner() {
  throw new Error('deep');
}
export default () => inner();
