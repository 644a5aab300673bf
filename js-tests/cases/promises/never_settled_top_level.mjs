// @load-error never
await new Promise(() => {});
export default () => 1;
