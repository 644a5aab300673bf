// @error exception
// @error-name TypeError
() => 1n;
