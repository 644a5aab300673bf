// @error host_service
() => this.hostServices.kv.get('nothing');
