// @reply-hex 00 7f 80 ff
() => Uint8Array.of(0, 127, 128, 255);
