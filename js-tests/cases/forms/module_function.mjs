// @subject a.b
// @payload {"n":1}
// @reply {"subject":"a.b","bytes":7,"text":"{\"n\":1}","n":1}
export default (msg) => ({ subject: msg.subject, bytes: msg.data.length, text: msg.text(), n: msg.json().n });
