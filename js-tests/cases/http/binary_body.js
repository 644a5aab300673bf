// @reply-hex 00 80 ff c3 28
() => this.http.post('http://service.test/echo', Uint8Array.of(0, 0x80, 0xff, 0xc3, 0x28)).body;
