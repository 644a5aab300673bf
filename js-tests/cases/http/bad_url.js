// @reply ["INVALID_ARGUMENT","INVALID_ARGUMENT","INVALID_ARGUMENT"]
() =>
  [undefined, 'no url', 'ftp://service.test/'].map((url) => {
    try {
      this.http.get(url);
    } catch (error) {
      return error.code;
    }
  });
