// @header X-Tenant: blue
// @header X-Many: a
// @header X-Many: b
// @reply {"tenant":"blue","many":["a","b"],"none":null,"has":true,"keys":["X-Tenant","X-Many"]}
export default (msg) => ({
  tenant: msg.headers.get('X-Tenant'),
  many: msg.headers.getAll('X-Many'),
  none: msg.headers.get('X-None'),
  has: msg.headers.has('X-Many'),
  keys: msg.headers.keys(),
});
