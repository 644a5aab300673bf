// @reply
() => '';
