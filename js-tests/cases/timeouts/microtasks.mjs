// A loop of microtasks never gives way to a timer of the event loop.
// @wall-ms 300
// @call spin
// @error wall_timeout
// @call work
// @reply work
export default async (msg) => {
  while (msg.text() === 'spin') await null;
  return msg.data;
};
