// @reply 404
() => this.http.get('http://service.test/missing').status;
