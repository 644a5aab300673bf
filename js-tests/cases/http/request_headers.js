// @reply blue
() => this.http.get('http://service.test/header', { headers: { 'X-Tenant': 'blue' } }).response;
