// @reply plain
() => new Reply('plain');
