//! The server process: started, configured, explained, ended.

use std::path::Path;
use std::time::Instant;

use nex_host_services::nats_server::{NatsServer, NatsServerError, Options, find_binary};

use crate::world::PATIENCE;

fn is_running(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn starts_serves_and_ends() {
    let server = NatsServer::start().unwrap();
    let client = async_nats::connect(server.url()).await.unwrap();
    assert!(client.server_info().jetstream);
    let other = NatsServer::start().unwrap();
    assert_ne!(server.port(), other.port());
    let pid = server.pid();
    assert!(is_running(pid));
    drop(server);
    assert!(!is_running(pid), "killed and reaped");
    drop(other);
}

#[test]
fn outlives_the_thread_that_started_it() {
    let server = std::thread::spawn(NatsServer::start).join().unwrap().unwrap();
    std::net::TcpStream::connect(("127.0.0.1", server.port())).unwrap();
}

#[tokio::test]
async fn configuration_and_port_are_as_wished() {
    let config = "authorization { user: alice, password: secret }\nmax_payload: 1234\n";
    let config = config.to_owned();
    let options = Options {
        no_jetstream: true,
        config: config.clone(),
        ..Options::default()
    };
    let server = NatsServer::start_with(options).unwrap();
    let port = server.port();
    assert!(async_nats::connect(server.url()).await.is_err());
    let login = async_nats::ConnectOptions::with_user_and_password("alice".into(), "secret".into());
    let client = login.clone().connect(server.url()).await.unwrap();
    assert_eq!(client.server_info().max_payload, 1234);
    assert!(!client.server_info().jetstream);
    drop((client, server));

    let server = NatsServer::start_with(Options {
        port,
        config,
        ..Options::default()
    })
    .unwrap();
    assert_eq!(server.port(), port);
    login.connect(server.url()).await.unwrap();
}

#[tokio::test]
async fn a_store_survives_its_server() {
    let store = tempfile::tempdir().unwrap();
    // A path with characters that mean something in the configuration language.
    let store_dir = Some(store.path().join("a \"b\" #c"));
    let options = Options {
        store_dir,
        ..Options::default()
    };
    for round in 0..2u8 {
        let server = NatsServer::start_with(options.clone()).unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        let jetstream = async_nats::jetstream::new(client);
        if round == 0 {
            let config = async_nats::jetstream::kv::Config {
                bucket: "b".to_owned(),
                ..Default::default()
            };
            let bucket = jetstream.create_key_value(config).await.unwrap();
            bucket.put("k", "v".into()).await.unwrap();
        } else {
            let bucket = jetstream.get_key_value("b").await.unwrap();
            assert_eq!(bucket.get("k").await.unwrap().unwrap(), "v");
        }
    }
}

#[test]
fn a_failed_start_is_explained_at_once() {
    let started = Instant::now();
    let options = Options {
        config: "no_such_option: 1\n".to_owned(),
        ..Options::default()
    };
    let error = NatsServer::start_with(options).unwrap_err();
    assert!(matches!(error, NatsServerError::Ended { .. }), "{error:?}");
    assert!(error.to_string().contains("no_such_option"), "{error}");

    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = NatsServer::start_with(Options {
        port,
        ..Options::default()
    })
    .unwrap_err();
    assert!(error.to_string().contains("address already in use"), "{error}");

    let options = Options {
        binary: Some("/nowhere/nats-server".into()),
        ..Options::default()
    };
    let error = NatsServer::start_with(options).unwrap_err();
    assert!(
        matches!(error, NatsServerError::Io { action: "start", .. }),
        "{error:?}"
    );
    assert!(started.elapsed() < PATIENCE);
}

#[cfg(target_os = "linux")]
#[test]
fn ends_with_its_process() {
    // This test runs itself in a process of its own, which starts a server and is then killed.
    const CHILD: &str = "NEX_TEST_SERVER_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let server = NatsServer::start().unwrap();
        std::fs::write(std::env::var_os(CHILD).unwrap(), server.pid().to_string()).unwrap();
        std::process::abort();
    }
    let directory = tempfile::tempdir().unwrap();
    let pid_file = directory.path().join("pid");
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nats_server::ends_with_its_process"])
        .env(CHILD, &pid_file)
        .env("NATS_SERVER_BIN", find_binary().unwrap())
        .env("TMPDIR", directory.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success());
    let pid: u32 = std::fs::read_to_string(pid_file).unwrap().parse().unwrap();
    let deadline = Instant::now() + PATIENCE;
    // Whoever adopts it may reap it late; a dead process has no command line any more.
    while std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()) {
        assert!(Instant::now() < deadline, "the server is still there");
        std::thread::yield_now();
    }
}
