// @reply-hex 00 ff 00
() => Uint8Array.of(0, 255, 0).buffer;
