// @reply [200,201,204,204,204,200]
() => {
  const { http } = this.hostServices;
  const url = 'http://service.test/hello';
  return [
    http.get(url),
    http.post(url, 'x'),
    http.put(url, 'x'),
    http.patch(url, 'x'),
    http.del(url),
    http.head(url),
  ].map((response) => response.status);
};
