#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::time::Duration;

use nex_host_services::nats_server::NatsServer;
use nex_node::bench::Payload;
use nex_node::bench::load::Generator;
use nex_node::bench::nats::NatsTarget;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::rivals::test_server::{Response, TestServer};

const SUBJECT: &str = "bridged";

/// A bridge to a server, and a client of it.
struct Bridge {
    client: Client,
    task: JoinHandle<Result<()>>,
    _nats: NatsServer,
}

impl Bridge {
    async fn start(socket: PathBuf, connections: usize) -> Self {
        let nats = NatsServer::start().unwrap();
        let own = async_nats::connect(nats.url()).await.unwrap();
        let requests = own.subscribe(SUBJECT).await.unwrap();
        own.flush().await.unwrap();
        let pool = Pool::new(vec![socket], connections);
        let task = tokio::spawn(async move { serve(&own, requests, pool).await });
        Self {
            client: async_nats::connect(nats.url()).await.unwrap(),
            task,
            _nats: nats,
        }
    }

    async fn request(&self, payload: &'static str) -> Message {
        let request = self.client.request(SUBJECT, payload.into());
        timeout(Duration::from_secs(10), request).await.unwrap().unwrap()
    }

    async fn error(&self) -> [String; 2] {
        let reply = self.request("hello").await;
        assert_eq!(reply.payload, "");
        let headers = reply.headers.unwrap();
        [ERROR_CODE, ERROR].map(|name| headers.get(name).unwrap().as_str().to_owned())
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn messages_become_posts_and_replies_replies() {
    let server = TestServer::start(|request| {
        assert_eq!(request.line, "POST / HTTP/1.1\r\n");
        Response::sized("200 OK", &[b"got ", &request.body[..]].concat())
    });
    let bridge = Bridge::start(server.socket.clone(), 4).await;
    for _ in 0..2 {
        let reply = bridge.request("hello").await;
        assert_eq!(reply.payload, "got hello");
        assert_eq!(reply.headers, None);
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn errors_of_the_server_become_errors_of_the_service() {
    let server = TestServer::start(|_| Response::sized("503 Service Unavailable", b"too busy"));
    let bridge = Bridge::start(server.socket.clone(), 4).await;
    assert_eq!(bridge.error().await, ["503", "503 Service Unavailable: too busy"]);
}

#[tokio::test]
async fn callers_are_answered_when_the_server_breaks_off_or_is_gone() {
    let server = TestServer::start(|_| Response::sized("200 OK", b"hello").cut(1));
    let bridge = Bridge::start(server.socket.clone(), 4).await;
    let [code, text] = bridge.error().await;
    assert_eq!(code, "502");
    assert!(text.starts_with("the connection broke: "), "{text}");
    drop(server);
    let [code, text] = bridge.error().await;
    assert_eq!(code, "502");
    assert!(text.starts_with("cannot connect to "), "{text}");
}

#[tokio::test]
async fn there_are_never_more_connections_than_allowed() {
    const CONNECTIONS: usize = 3;
    let server = TestServer::start(|request| Response::sized("200 OK", &request.body));
    let bridge = Bridge::start(server.socket.clone(), CONNECTIONS).await;
    let target = NatsTarget::new(bridge.client.clone(), [SUBJECT]).await.unwrap();
    let mut generator = Generator::new(target, Payload::echo(64), Duration::from_secs(10));
    let result = generator.closed_loop(0, 64, Duration::from_millis(100)).await.unwrap();
    assert_eq!(result.tally.failures, Default::default());
    assert!(result.calls > 64);
    assert_eq!(server.connections(), CONNECTIONS);
}
