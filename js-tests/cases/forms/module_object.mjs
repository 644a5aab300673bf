// `this` is the exported object.
// @payload 20
// @reply 41
export default {
  offset: 1,
  async message(msg) {
    return Number(msg.text()) * 2 + this.offset;
  },
};
