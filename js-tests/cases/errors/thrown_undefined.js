// @error exception
() => {
  throw undefined;
};
