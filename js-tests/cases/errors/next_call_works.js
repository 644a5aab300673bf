// @call fail
// @error exception Error: as told
// @call work
// @reply worked
(subject, payload) => {
  if (String.fromCharCode(...payload) === 'fail') throw new Error('as told');
  return 'worked';
};
