// @call deep
// @error exception
// @error-name RangeError
// @call shallow
// @reply fine
const deeper = () => deeper() + 1;
(subject, payload) => (String.fromCharCode(...payload) === 'deep' ? deeper() : 'fine');
