// The error of a host call leads to the line of the call, not to the host's own code.
// @error host_service
// @error-name HostServiceError
// @stack : no key "nothing" in bucket
// @stack at read (file:///host_call_stack.js:6:36)
const read = (env) => env.kv().get('nothing');
export default async (msg, env) => {
  await null;
  return await read(env);
};
