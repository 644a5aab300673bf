// @error exception TypeError: the function returned a function, which has no JSON form
() => () => 1;
