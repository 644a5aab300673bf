// @reply false
() => false;
