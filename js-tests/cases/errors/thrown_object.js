// @error exception
() => {
  throw { code: 7 };
};
