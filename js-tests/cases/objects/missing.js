// @reply ["HostServiceError NOT_FOUND","HostServiceError NOT_FOUND"]
() => {
  const { objectStore } = this.hostServices;
  const failure = (action) => {
    try {
      action();
    } catch (error) {
      return `${error.name} ${error.code}`;
    }
  };
  return [failure(() => objectStore.get('nothing')), failure(() => objectStore.delete('nothing'))];
};
