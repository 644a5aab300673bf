// Waiting longer than allowed is cut off as well, though it uses no processor time.
// @wall-ms 300
// @call wait
// @error wall_timeout
// @call work
// @reply work
export default (msg) => (msg.text() === 'wait' ? new Promise((resolve) => setTimeout(resolve, 60000)) : msg.data);
