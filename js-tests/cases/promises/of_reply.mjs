// @reply body
// @reply-header X-Later: yes
export default async () => new Reply('body', { headers: { 'X-Later': 'yes' } });
