// @reply ready
const state = await Promise.resolve('ready');
export default () => state;
