// @reply-length 1048576
() => new Uint8Array(1 << 20);
