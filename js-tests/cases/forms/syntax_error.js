// The error names the line, and what is wrong with it.
// @load-error SyntaxError
// @load-error :5:
(subject, payload) => {
  return subject +;
};
