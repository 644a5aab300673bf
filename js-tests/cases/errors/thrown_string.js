// @error exception
// @error-contains plain text
() => {
  throw 'plain text';
};
