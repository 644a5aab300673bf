// @stream from a method
// @reply
export default {
  async *message() {
    yield 'from a method';
  },
};
