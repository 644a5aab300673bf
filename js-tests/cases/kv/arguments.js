// The texts are those of the documented system.
// @reply ["key is required","key and value are required","key and value are required","key is required"]
() => {
  const { kv } = this.hostServices;
  const message = (action) => {
    try {
      action();
    } catch (error) {
      return error.message.replace(/, as a Uint8Array.*/, '');
    }
  };
  return [
    message(() => kv.get()),
    message(() => kv.set()),
    message(() => kv.set('k')),
    message(() => kv.delete()),
  ];
};
