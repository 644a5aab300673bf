// @error exception TypeError: x
// @error-name TypeError
() => {
  throw new TypeError('x');
};
