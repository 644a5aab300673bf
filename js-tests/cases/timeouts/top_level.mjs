// @wall-ms 300
// @load-error did not end within
await new Promise((resolve) => setTimeout(resolve, 60000));
export default () => 1;
