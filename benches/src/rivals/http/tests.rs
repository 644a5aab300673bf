#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::sync::Mutex;
use std::time::Duration;

use nex_node::bench::Payload;
use nex_node::bench::load::Generator;

use super::*;
use crate::rivals::test_server::{Request, Response, TestServer};

fn echo(request: Request) -> Response {
    Response::sized("200 OK", &request.body)
}

fn pool(server: &TestServer) -> Pool {
    Pool::new(vec![server.socket.clone()], 16)
}

async fn post(pool: &Pool, body: &'static str) -> Result<Bytes, CallError> {
    pool.call(&Method::POST, "/", Bytes::from_static(body.as_bytes())).await
}

#[tokio::test]
async fn calls_one_after_the_other_share_a_connection() {
    let server = TestServer::start(echo);
    let pool = pool(&server);
    for body in ["one", "", "three"] {
        assert_eq!(post(&pool, body).await.unwrap(), body);
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn the_server_sees_method_path_and_body() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let requests = Arc::clone(&seen);
    let server = TestServer::start(move |request| {
        requests
            .lock()
            .unwrap()
            .push((request.line.trim().to_owned(), request.body));
        Response::sized("204 No Content", b"")
    });
    pool(&server)
        .call(&Method::PUT, "/?id", Bytes::from_static(b"x"))
        .await
        .unwrap();
    assert_eq!(*seen.lock().unwrap(), [("PUT /?id HTTP/1.1".to_owned(), b"x".to_vec())]);
}

#[tokio::test]
async fn chunked_replies_are_put_together() {
    let server = TestServer::start(|request| Response::chunked(&request.body));
    let pool = pool(&server);
    assert_eq!(post(&pool, "in many parts").await.unwrap(), "in many parts");
    assert_eq!(post(&pool, "").await.unwrap(), "");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_connection_that_the_server_has_closed_is_replaced() {
    let server = TestServer::start(|request| echo(request).close());
    let pool = pool(&server);
    for calls in 1..=3 {
        assert_eq!(post(&pool, "again").await.unwrap(), "again");
        assert_eq!(server.connections(), calls);
        server.closed.acquire().await.unwrap().forget();
    }
}

#[tokio::test]
async fn a_reply_cut_short_is_an_error_and_not_asked_for_again() {
    let server = TestServer::start(|request| echo(request).cut(2));
    let pool = pool(&server);
    for calls in 1..=2 {
        assert!(matches!(post(&pool, "hello").await, Err(CallError::Broken(_))));
        assert_eq!(server.connections(), calls);
    }
}

#[tokio::test]
async fn an_error_of_the_server_is_told_and_the_connection_kept() {
    let server = TestServer::start(|_| Response::sized("503 Service Unavailable", b"too busy\nsecond line"));
    let pool = pool(&server);
    for _ in 0..2 {
        let error = post(&pool, "hello").await.unwrap_err();
        assert_eq!(error.to_string(), "503 Service Unavailable: too busy");
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn without_a_server_the_socket_is_named() {
    let server = TestServer::start(echo);
    let socket = server.socket.clone();
    drop(server);
    let error = post(&Pool::new(vec![socket.clone()], 1), "hello").await.unwrap_err();
    assert!(error.to_string().contains(socket.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn sockets_take_turns() {
    let servers = [TestServer::start(echo), TestServer::start(echo)];
    let pool = Pool::new(servers.iter().map(|server| server.socket.clone()).collect(), 16);
    let (one, two) = tokio::join!(post(&pool, "one"), post(&pool, "two"));
    assert_eq!((one.unwrap(), two.unwrap()), (Bytes::from("one"), Bytes::from("two")));
    assert_eq!(servers.each_ref().map(TestServer::connections), [1, 1]);
}

#[tokio::test]
async fn the_load_generator_checks_what_comes_over_http() {
    let server = TestServer::start(echo);
    let target = HttpTarget::new(pool(&server), ["/".to_owned()]);
    let mut generator = Generator::new(target, Payload::echo(100), Duration::from_secs(10));
    let result = generator.closed_loop(0, 8, Duration::from_millis(50)).await.unwrap();
    assert_eq!(result.tally.failures, Default::default());
    assert!(result.calls > 0);
    assert!((1..=8).contains(&server.connections()), "{}", server.connections());

    let wrong = TestServer::start(|_| Response::sized("200 OK", b"something else"));
    let target = HttpTarget::new(pool(&wrong), ["/".to_owned()]);
    let mut generator = Generator::new(target, Payload::echo(100), Duration::from_secs(10));
    assert!(generator.call(0).await.unwrap().is_err());
}
