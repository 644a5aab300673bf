// A getter that throws while the error is being read must not take the engine along.
// @call
// @error exception
// @call
// @error exception
() => {
  throw Object.defineProperty(new Error(), 'message', {
    get() {
      throw new Error('no');
    },
  });
};
