// @reply
() => new Uint8Array();
