// A log line must not speak to the terminal of whoever reads it.
// @log INFO \x1b[31mred\x1b[0m	tab\r\x00\u{202e}
// @reply
() => console.log('\x1b[31mred\x1b[0m\ttab\r\0\u202e');
