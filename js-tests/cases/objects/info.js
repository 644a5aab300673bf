// `put` answers the object's metadata; the digest is SHA-256 in URL-safe base64.
// @payload hello!
// @reply {"name":"o","size":6,"digest":"SHA-256=zgYJL7lI2f-sfRo3bkBLJrdXW8wR7gWkYV_vT-w6MIs=","chunks":1,"deleted":false}
(subject, payload) => {
  const { name, size, digest, chunks, deleted } = this.hostServices.objectStore.put('o', payload);
  return { name, size, digest, chunks, deleted: Boolean(deleted) };
};
