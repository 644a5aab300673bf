// @reply INVALID_ARGUMENT
() => {
  try {
    this.hostServices.kv.set('white space', 'x');
  } catch (error) {
    return error.code;
  }
};
