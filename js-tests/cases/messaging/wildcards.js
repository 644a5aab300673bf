// One cannot publish to a wildcard.
// @reply ["INVALID_ARGUMENT","INVALID_ARGUMENT","INVALID_ARGUMENT"]
() =>
  ['a.*', 'a.>', 'a b'].map((subject) => {
    try {
      this.hostServices.messaging.publish(subject, '');
    } catch (error) {
      return error.code;
    }
  });
