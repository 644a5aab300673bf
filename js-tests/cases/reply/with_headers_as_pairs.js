// @reply-hex ff
// @reply-header X-Many: a
// @reply-header X-Many: b
() => new Reply(Uint8Array.of(255), { headers: [['X-Many', 'a'], ['X-Many', 'b']] });
