// `svc.many` has three responders.
// @payload ask
// @reply ["1: ask","2: ask","3: ask"]
(subject, payload) =>
  this.messaging
    .requestMany('svc.many', payload, { timeout: 200 })
    .map((bytes) => new TextDecoder().decode(bytes))
    .sort();
