// @reply []
() => this.hostServices.objectStore.list();
