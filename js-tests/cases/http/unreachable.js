// @reply UNAVAILABLE
() => {
  try {
    this.http.get('http://nowhere.test/');
  } catch (error) {
    return error.code;
  }
};
