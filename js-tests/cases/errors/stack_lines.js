// The stack names each function and line, counted as in the file.
// @error exception Error: deep
// @stack at inner
// @stack :8:9
// @stack at outer
// @stack :10:21
const inner = () => {
  throw new Error('deep');
};
const outer = () => inner();
() => outer();
