// @log TRACE t
// @log DEBUG d
// @log INFO l
// @log INFO i
// @log WARN w
// @log ERROR e
// @reply
() => {
  console.trace('t');
  console.debug('d');
  console.log('l');
  console.info('i');
  console.warn('w');
  console.error('e');
};
