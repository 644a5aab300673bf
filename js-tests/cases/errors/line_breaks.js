// The message goes into a header, so it is one line.
// @error exception Error: one two
() => {
  throw new Error('one\r\ntwo');
};
