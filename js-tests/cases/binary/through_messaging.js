// `svc.echo` is a responder of the test suite.
// @payload-hex 00 80 ff c3 28
// @reply-hex 00 80 ff c3 28
(subject, payload) => this.hostServices.messaging.request('svc.echo', payload);
