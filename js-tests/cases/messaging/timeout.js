// `svc.silent` takes requests and never answers.
// @reply TIMEOUT
() => {
  try {
    this.hostServices.messaging.request('svc.silent', '', { timeout: 20 });
  } catch (error) {
    return error.code;
  }
};
