// @error exception OutOfStock: no more of 7
// @error-name OutOfStock
class OutOfStock extends Error {
  name = 'OutOfStock';
}
() => {
  throw new OutOfStock('no more of 7');
};
