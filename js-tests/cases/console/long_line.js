// Lines longer than 10,000 characters are cut.
// @log-length 10000 10100
// @reply
() => console.log('x'.repeat(100000));
