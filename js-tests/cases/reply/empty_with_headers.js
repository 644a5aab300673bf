// @reply
// @reply-header X-Empty: yes
() => new Reply(undefined, { headers: { 'X-Empty': 'yes' } });
