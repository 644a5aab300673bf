//! Functions on healthy agents: who shares one, what passes through, and how agents come and go.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use nex_node::agents::{AgentError, AgentEvent, AgentPool, AgentPoolConfig, AgentState, Isolation};
use nex_node::machines::{DriverKind, ProcessConfig, ProcessDriver};
use nex_runtime::engine::{Engine, EngineEvent, FunctionHost, Limit, LimitHit, LoadError};
use nex_runtime::host_services::{
    HostError, HostErrorCode, HostRequest, HostResponse, HostResult, HostServices, Operation,
};
use nex_runtime::invocation::{ErrorKind, Reply};
use tokio::sync::mpsc;

use crate::support::*;

#[tokio::test]
async fn replies_errors_streams_logs_events_and_host_calls_pass_through() {
    let pool = toys().await;
    assert_eq!(pool.workload_types(), ["v8"]);

    let (echo, _host) = load(&pool, "echo").await;
    let bytes: Bytes = (0..=255).collect();
    assert_eq!(call(&echo, bytes.clone()).await.unwrap().body, bytes);
    let large = Bytes::from(vec![1; 1_000_000]);
    assert_eq!(call(&echo, large.clone()).await.unwrap().body, large);

    let (throw, _host) = load(&pool, "throw").await;
    let error = call(&throw, "").await.unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::Exception, "TypeError: x")
    );

    let (stream, _host) = load(&pool, "stream").await;
    let (sender, mut replies) = mpsc::unbounded_channel();
    stream.invoke(trigger("1000"), Box::new(sender));
    for i in 0..1000 {
        assert_eq!(replies.recv().await.unwrap().unwrap().body, i.to_string());
    }
    assert_eq!(replies.recv().await.unwrap().unwrap(), Reply::default());
    assert!(replies.recv().await.is_none());

    let (log, mut host) = load(&pool, "log").await;
    call(&log, "3").await.unwrap();
    for i in 0..3 {
        assert_eq!(host.logs.recv().await.unwrap().text, i.to_string());
    }

    let (event, mut host) = load(&pool, "event").await;
    call(&event, "").await.unwrap();
    let heard = host.events.recv().await.unwrap();
    assert!(matches!(
        heard,
        EngineEvent::LimitHit(LimitHit {
            limit: Limit::HeapBytes,
            ..
        })
    ));
}

#[tokio::test]
async fn a_host_call_is_carried_out_for_the_function_it_comes_from() {
    let pool = toys().await;
    let (first, mut first_host) = try_load(&pool, spec("ns", "first", "set")).await;
    let (second, mut second_host) = try_load(&pool, spec("ns", "second", "set")).await;
    let (first, second) = (first.unwrap(), second.unwrap());
    let first_answer = start(&first, "one");
    let second_answer = start(&second, "two");
    for (host, payload, revision) in [(&mut second_host, "two", 2), (&mut first_host, "one", 1)] {
        let asked = within(host.calls.recv()).await.unwrap();
        assert_eq!(asked.request.payload, payload);
        assert!(matches!(asked.request.operation, Operation::KvSet { .. }));
        _ = asked.answer.send(Ok(HostResult::Revision(revision).into()));
    }
    assert_eq!(text(&first_answer.await.unwrap().unwrap()), "1");
    assert_eq!(text(&second_answer.await.unwrap().unwrap()), "2");
}

#[tokio::test]
async fn a_host_service_that_panics_and_a_result_too_large_are_errors_of_the_call() {
    let pool = toys().await;
    let (gate, mut host) = load(&pool, "gate").await;
    let answer = start(&gate, "k");
    // Dropping the answer makes the service panic.
    drop(within(host.calls.recv()).await.unwrap().answer);
    let error = within(answer).await.unwrap().unwrap_err();
    assert!(error.message.contains(HostErrorCode::Internal.as_str()), "{error}");

    let answer = start(&gate, "k");
    let response = HostResponse {
        result: HostResult::Value,
        payload: vec![0; 300 << 20].into(),
    };
    _ = within(host.calls.recv()).await.unwrap().answer.send(Ok(response));
    let error = within(answer).await.unwrap().unwrap_err();
    assert!(error.message.contains(HostErrorCode::LimitExceeded.as_str()), "{error}");
}

#[tokio::test]
async fn a_host_service_that_hogs_its_thread_costs_no_agent() {
    struct Hog(Duration);
    impl HostServices for Hog {
        fn call(&self, _: HostRequest) -> BoxFuture<'static, Result<HostResponse, HostError>> {
            let time = self.0;
            Box::pin(async move {
                std::thread::sleep(time);
                Ok(HostResult::Done.into())
            })
        }
    }
    let mut config = config("toy");
    config.heartbeat_timeout = Duration::from_millis(200);
    let hog = Hog(5 * config.heartbeat_timeout);
    let pool = AgentPool::start(config).await.unwrap();
    let (who, _host) = load(&pool, "pid").await;
    let before = pid(&who).await;
    let (host, _test) = host();
    let host = FunctionHost {
        services: Arc::new(hog),
        ..host
    };
    let gate = pool.load(spec("ns", "gate", "gate"), host).await.unwrap();
    within(call(&gate, "k")).await.unwrap();
    assert_eq!(pid(&who).await, before);
}

#[tokio::test]
async fn a_host_call_the_function_gives_up_is_abandoned() {
    let pool = toys().await;
    let (cancel, mut host) = load(&pool, "cancel").await;
    let answer = start(&cancel, "");
    let mut given_up = within(host.calls.recv()).await.unwrap();
    let go = within(host.calls.recv()).await.unwrap();
    assert!(!given_up.answer.is_closed());
    _ = go.answer.send(Ok(HostResult::Done.into()));
    within(given_up.answer.closed()).await;
    within(answer).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_namespace_shares_an_agent_and_no_two_namespaces_do() {
    let pool = toys().await;
    let mut functions = Vec::new();
    let mut pids = BTreeSet::new();
    for namespace in ["one", "two", "three"] {
        let (first, _host) = try_load(&pool, spec(namespace, "first", "pid")).await;
        let (second, _host) = try_load(&pool, spec(namespace, "second", "pid")).await;
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!(pid(&first).await, pid(&second).await);
        assert!(pids.insert(pid(&first).await), "{namespace} shares its agent");
        functions.extend([first, second]);
    }
    let agents = pool.agents();
    let serving: Vec<_> = agents
        .iter()
        .filter(|agent| agent.state == AgentState::Serving)
        .collect();
    assert_eq!(serving.len(), 3);
    for agent in serving {
        let namespace = agent.namespace.clone().unwrap();
        assert_eq!(
            agent.functions,
            [format!("{namespace}-first"), format!("{namespace}-second")]
        );
        assert!(pids.contains(&agent.pid));
    }
}

#[tokio::test]
async fn many_deploys_at_once_for_one_namespace_end_on_one_agent() {
    let pool = toys().await;
    let loads = (0..20).map(|i| try_load(&pool, spec("ns", &i.to_string(), "pid")));
    let mut pids = BTreeSet::new();
    for (function, _host) in futures::future::join_all(loads).await {
        pids.insert(pid(&function.unwrap()).await);
    }
    assert_eq!(pids.len(), 1);
}

#[tokio::test]
async fn an_agent_takes_no_more_functions_than_it_may() {
    let pool = AgentPool::start(AgentPoolConfig {
        max_functions_per_agent: 4,
        ..config("toy")
    })
    .await
    .unwrap();
    let loads = (0..10).map(|i| try_load(&pool, spec("ns", &i.to_string(), "pid")));
    let functions = futures::future::join_all(loads).await;
    let serving = pool
        .agents()
        .into_iter()
        .filter(|agent| agent.state == AgentState::Serving);
    let counts: Vec<usize> = serving.map(|agent| agent.functions.len()).collect();
    assert_eq!(counts.iter().sum::<usize>(), 10);
    assert!(counts.iter().all(|&count| count <= 4), "{counts:?}");
    drop(functions);
}

#[tokio::test]
async fn workloads_have_agents_of_their_own_if_so_wished_or_if_one_is_full() {
    let alone = AgentPoolConfig {
        isolation: Isolation::Workload,
        ..config("toy")
    };
    let full = AgentPoolConfig {
        max_functions_per_agent: 1,
        ..config("toy")
    };
    for config in [alone, full] {
        let pool = AgentPool::start(config).await.unwrap();
        let (first, _host) = try_load(&pool, spec("ns", "first", "pid")).await;
        let (second, _host) = try_load(&pool, spec("ns", "second", "pid")).await;
        assert_ne!(pid(&first.unwrap()).await, pid(&second.unwrap()).await);
    }
}

#[tokio::test]
async fn warm_agents_are_replenished() {
    let pool = AgentPool::start(AgentPoolConfig {
        warm_size: 2,
        ..config("toy")
    })
    .await
    .unwrap();
    let mut events = pool.subscribe();
    let (_function, _host) = load(&pool, "echo").await;
    while pool.available() < 2 {
        within(events.recv()).await.unwrap();
    }
    let warm: Vec<_> = pool
        .agents()
        .into_iter()
        .filter(|agent| agent.state == AgentState::Warm)
        .collect();
    assert_eq!(warm.len(), 2);
    assert!(warm.iter().all(|agent| agent.namespace.is_none()));
}

#[tokio::test]
async fn an_agent_gets_nothing_of_the_nodes_environment() {
    let pool = toys().await;
    let pid = pool.agents()[0].pid;
    let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let names: BTreeSet<&str> = environment
        .split_terminator('\0')
        .map(|variable| variable.split('=').next().unwrap())
        .collect();
    assert_eq!(names, BTreeSet::from(["NEX_TEST_AGENT", "RUST_LOG"]));
    let sockets = |pid: &str| -> BTreeSet<PathBuf> {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .filter(|target| target.to_string_lossy().starts_with("socket:"))
            .collect()
    };
    let shared: Vec<_> = sockets(&pid.to_string())
        .intersection(&sockets("self"))
        .cloned()
        .collect();
    assert!(shared.is_empty(), "{shared:?}");
}

#[tokio::test]
async fn a_load_error_is_the_engines_and_costs_no_agent() {
    let pool = toys().await;
    let (_function, _host) = load(&pool, "echo").await;
    let (refused, _host) = try_load(&pool, spec("ns", "bad", "load-error")).await;
    assert_eq!(refused.unwrap_err(), LoadError::Syntax("no".to_owned()));
    let serving = pool
        .agents()
        .into_iter()
        .find(|agent| agent.state == AgentState::Serving);
    assert_eq!(serving.unwrap().functions, ["ns-echo"]);
}

#[tokio::test]
async fn an_agent_without_functions_ends_after_its_linger() {
    let pool = AgentPool::start(AgentPoolConfig {
        idle_linger: Duration::ZERO,
        ..config("toy")
    })
    .await
    .unwrap();
    let mut events = pool.subscribe();
    let (function, _host) = load(&pool, "pid").await;
    let pid = pid(&function).await;
    drop(function);
    assert_eq!(stopped(&mut events).await, ("was stopped".to_owned(), 0));
    assert!(!exists(pid));
    assert!(pool.agents().iter().all(|agent| agent.pid != pid));
}

#[tokio::test]
async fn shutdown_answers_what_is_in_flight_and_leaves_no_process() {
    let pool = toys().await;
    let mut events = pool.subscribe();
    let (gate, mut host) = load(&pool, "gate").await;
    let answer = start(&gate, "k");
    let asked = within(host.calls.recv()).await.unwrap();
    while pool.available() == 0 {
        within(events.recv()).await.unwrap();
    }
    let pids: Vec<u32> = pool.agents().iter().map(|agent| agent.pid).collect();

    let shutdown = tokio::spawn({
        let pool = pool.clone();
        async move { pool.shutdown().await }
    });
    // Warm agents have nothing to wait for.
    let (_, code) = stopped(&mut events).await;
    assert_eq!(code, 0);
    assert!(!shutdown.is_finished());
    // New calls are turned away at once, the one in flight is not.
    assert_eq!(within(call(&gate, "")).await.unwrap_err().kind, ErrorKind::NotReady);
    _ = asked.answer.send(Ok(HostResult::Value.into()));
    within(answer).await.unwrap().unwrap();
    within(shutdown).await.unwrap();
    assert!(pids.iter().all(|&pid| !exists(pid)));
    assert!(pool.agents().is_empty());

    let error = call(&gate, "").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotReady);
    let (refused, _host) = try_load(&pool, spec("ns", "late", "echo")).await;
    assert!(matches!(refused, Err(LoadError::Engine(message)) if message.contains("shut down")));
    within(pool.shutdown()).await;
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever() {
    let pool = AgentPool::start(AgentPoolConfig {
        shutdown_grace: Duration::from_millis(300),
        ..config("toy")
    })
    .await
    .unwrap();
    let (keep, _host) = load(&pool, "keep").await;
    let answer = start(&keep, "");
    let began = Instant::now();
    within(pool.shutdown()).await;
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(answer.await.unwrap().unwrap_err().kind, ErrorKind::NotReady);
}

#[tokio::test]
async fn dropping_the_pool_ends_its_agents() {
    let pool = toys().await;
    let mut events = pool.subscribe();
    let (keep, _host) = load(&pool, "keep").await;
    let answer = start(&keep, "");
    let pids: Vec<u32> = pool.agents().iter().map(|agent| agent.pid).collect();
    drop(pool);
    let error = within(answer).await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotReady);
    for _ in &pids {
        stopped(&mut events).await;
    }
    assert!(pids.iter().all(|&pid| !exists(pid)));
}

#[tokio::test]
async fn a_binary_that_is_no_agent_is_refused_with_a_reason() {
    let error_of = async |bin: &str| {
        let driver = ProcessDriver::unconfined(ProcessConfig::new(bin));
        AgentPool::start(AgentPoolConfig::new(driver)).await.unwrap_err()
    };
    let missing = error_of("/no/such/agent").await;
    assert!(matches!(missing, AgentError::Machine(_)));
    assert!(missing.to_string().contains("/no/such/agent"), "{missing}");
    let ends = error_of("/bin/false").await;
    assert_eq!(ends.to_string(), "the machine did not start: exit status: 1");
    for (role, reason) in [
        ("no-v8", "the agent does not run workloads of type v8"),
        ("early", "the agent did not start: its first frame was no hello"),
        ("garbage", "the agent did not start: malformed frame header"),
    ] {
        let error = AgentPool::start(config(role)).await.unwrap_err();
        assert_eq!(error.to_string(), reason);
    }
    let mute = ProcessDriver::unconfined(ProcessConfig {
        start_timeout: Duration::from_millis(200),
        ..process("mute")
    });
    let error = AgentPool::start(AgentPoolConfig::new(mute)).await.unwrap_err();
    assert_eq!(error.to_string(), "the machine was not ready within 200ms");
}

#[tokio::test]
async fn events_tell_of_starts() {
    let pool = toys().await;
    let mut events = pool.subscribe();
    let (_function, _host) = load(&pool, "echo").await;
    let started = within(events.recv()).await.unwrap();
    let AgentEvent::Started {
        id,
        pid,
        version,
        driver,
        start,
    } = started
    else {
        panic!("{started:?}");
    };
    assert_eq!(driver, DriverKind::Process);
    assert!(!start.restored && start.elapsed > Duration::ZERO);
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    assert!(pool.agents().iter().any(|agent| agent.id == id && agent.pid == pid));
}

#[tokio::test]
async fn a_function_may_be_called_from_any_thread() {
    let pool = toys().await;
    let (echo, _host) = load(&pool, "echo").await;
    let answers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|i: u32| {
                let echo = Arc::clone(&echo);
                scope.spawn(move || (0..250).map(|j| start(&echo, format!("{i} {j}"))).collect::<Vec<_>>())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (i, answers) in answers.into_iter().enumerate() {
        for (j, answer) in answers.into_iter().enumerate() {
            assert_eq!(text(&within(answer).await.unwrap().unwrap()), format!("{i} {j}"));
        }
    }
}
