// @reply [201,"POST /hello posted"]
export default async (msg, env) => {
  const { status, response } = await env.http.post('http://service.test/hello', 'posted');
  return [status, response];
};
