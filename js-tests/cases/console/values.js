// @log INFO text 1 true null undefined 7n
// @log INFO { a: 1, b: [ 1, "two" ] }
// @reply
() => {
  console.log('text', 1, true, null, undefined, 7n);
  console.log({ a: 1, b: [1, 'two'] });
};
