// @log INFO { self: [Circular] }
// @reply
() => {
  const ring = {};
  ring.self = ring;
  console.log(ring);
};
