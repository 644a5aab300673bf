// @reply
() => {};
