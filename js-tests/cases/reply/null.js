// `null` is a JSON value, unlike `undefined`.
// @reply null
() => null;
