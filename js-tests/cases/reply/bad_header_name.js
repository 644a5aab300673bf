// @error exception
// @error-name TypeError
// @error-contains header name
() => new Reply('', { headers: { 'X One': 'a' } });
