// @load-error RangeError: not today
// @load-error :4:
const check = () => {
  throw new RangeError('not today');
};
check();
() => 1;
