// @reply written
export default async (msg, env) => {
  await env.kv('settings').set('k', 'written');
  return env.kv('settings').get('k');
};
