
self.onmessage = ({ data }) => self.postMessage(handle(new TextDecoder().decode(data)));
