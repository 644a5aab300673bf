// A string is taken as its UTF-8 bytes wherever bytes are.
// @reply ["é→195,169","é→195,169","é→195,169"]
() => {
  const { kv, objectStore, messaging } = this.hostServices;
  kv.set('text', 'é');
  objectStore.put('text', 'é');
  return [kv.get('text'), objectStore.get('text'), messaging.request('svc.echo', 'é')].map(
    (bytes) => `${new TextDecoder().decode(bytes)}→${bytes.join(',')}`,
  );
};
