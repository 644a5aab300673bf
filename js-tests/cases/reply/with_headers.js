// @reply {"ok":true}
// @reply-header X-One: 1
// @reply-header X-Many: a
// @reply-header X-Many: b
() => new Reply({ ok: true }, { headers: { 'X-One': 1, 'X-Many': ['a', 'b'] } });
