// @error exception TypeError: Cannot read properties of undefined (reading 'field')
(subject, payload) => payload.missing.field;
