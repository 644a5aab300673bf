// A synchronous host call that takes longer than the function may.
// @wall-ms 300
// @call wait
// @error wall_timeout
// @call work
// @reply work
(subject, payload) => {
  if (String.fromCharCode(...payload) === 'wait') this.messaging.request('svc.silent', '', { timeout: 60000 });
  return payload;
};
