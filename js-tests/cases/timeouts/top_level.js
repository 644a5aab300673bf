// @wall-ms 300
// @load-error did not end within
for (;;);
