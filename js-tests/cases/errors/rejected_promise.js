// @error exception RangeError: later
async () => {
  await null;
  throw new RangeError('later');
};
