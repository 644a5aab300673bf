// A line break in a header would let the value forge further headers.
// @error exception
// @error-name TypeError
// @error-contains line break
() => new Reply('', { headers: { 'X-One': 'a\r\nX-Two: b' } });
