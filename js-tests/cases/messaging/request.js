// `svc.echo` gives the payload back.
// @payload ask
// @reply ask
(subject, payload) => this.hostServices.messaging.request('svc.echo', payload);
