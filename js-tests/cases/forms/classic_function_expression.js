// The completion value may be any function, not just an arrow.
// @subject s
// @reply s
(function handler(subject) {
  return subject;
});
