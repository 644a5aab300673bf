// The documented shape, and the body as bytes beside the text.
// @reply {"status":200,"type":"text/plain","response":"GET /hello?a=1&b=%20","bytes":true}
() => {
  const { status, headers, response, body } = this.http.get('http://service.test/hello?a=1&b=%20');
  return { status, type: headers['Content-Type'], response, bytes: body instanceof Uint8Array };
};
