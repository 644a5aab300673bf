// When nothing is left that could settle the promise, the caller need not wait for the limit to hear of it.
// @call wait
// @error exception
// @error-contains can never settle
// @call work
// @reply work
export default (msg) => (msg.text() === 'wait' ? new Promise(() => {}) : msg.data);
