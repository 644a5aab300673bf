// @reply [1,2]
() => Promise.all([1, Promise.resolve(2)]);
