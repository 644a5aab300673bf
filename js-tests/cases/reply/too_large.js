// The limit of these tests is 1 MiB, the default.
// @error payload_too_large
() => new Uint8Array((1 << 20) + 1);
