// @reply grüße, 世界 🎈
() => 'grüße, 世界 🎈';
