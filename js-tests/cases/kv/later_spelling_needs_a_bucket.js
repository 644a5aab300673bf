// @error exception TypeError: bucket name is required
() => this.kv().keys();
