// Wrong arguments reject as well, instead of throwing at the call.
// @reply ["NOT_FOUND","INVALID_ARGUMENT"]
export default async (msg, env) => {
  const codes = [];
  for (const promise of [env.kv().get('nothing'), env.kv().get()]) {
    await promise.catch((error) => codes.push(error.code));
  }
  return codes;
};
