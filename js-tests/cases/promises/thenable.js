// @reply done
() => ({ then: (resolve) => resolve('done') });
