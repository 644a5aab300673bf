// @reply NO_RESPONDERS
() => {
  try {
    this.hostServices.messaging.request('svc.nobody', '');
  } catch (error) {
    return error.code;
  }
};
