// @subject orders.eu.created
// @payload héllo
// @reply ["orders.eu.created",true,"104,195,169,108,108,111"]
(subject, payload) => [subject, payload instanceof Uint8Array, payload.join(',')];
