// @log-contains ERROR Error: logged
// @reply
() => console.error(new Error('logged'));
