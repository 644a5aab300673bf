// Only `Uint8Array` and `ArrayBuffer` are bytes; "anything else" is JSON, other views included.
// @reply {"0":1,"1":513}
() => Uint16Array.of(1, 513);
