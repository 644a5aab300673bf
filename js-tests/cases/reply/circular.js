// @error exception
// @error-name TypeError
// @error-contains circular
() => {
  const ring = {};
  ring.ring = ring;
  return ring;
};
