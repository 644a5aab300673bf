// A view of part of a buffer answers that part, not the whole buffer.
// @reply-hex 02 03
() => new Uint8Array([0, 1, 2, 3, 4]).subarray(2, 4);
