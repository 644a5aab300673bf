// Errors are real `Error` objects with a code and a stack.
// @reply {"isError":true,"name":"HostServiceError","code":"NOT_FOUND","text":true,"stack":true}
() => {
  try {
    this.hostServices.kv.get('nothing');
  } catch (error) {
    return {
      isError: error instanceof Error,
      name: error.name,
      code: error.code,
      text: typeof error.message === 'string' && error.message !== '',
      stack: error.stack.includes('missing_key') || error.stack.includes(':'),
    };
  }
};
