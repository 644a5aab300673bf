// @reply {"zebra":1,"ant":{"list":[1,"two",null]},"gone":{}}
() => ({ zebra: 1, ant: { list: [1, 'two', undefined] }, gone: { value: undefined } });
