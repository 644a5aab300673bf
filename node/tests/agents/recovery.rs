//! Agents that die, fall silent or must be replaced.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nex_node::agents::{AgentEvent, AgentInfo, AgentPool, AgentPoolConfig, AgentState};
use nex_runtime::engine::{Engine as _, EngineEvent, Function, FunctionSpec, Limits, LoadError};
use nex_runtime::host_services::{HostError, HostErrorCode, HostResult};
use nex_runtime::invocation::ErrorKind;
use rustix::process::Signal;

use crate::support::*;

fn deny() -> HostError {
    HostError::new(HostErrorCode::PermissionDenied, "")
}

fn limited(source: &str, limits: Limits) -> FunctionSpec {
    FunctionSpec {
        limits,
        ..spec("ns", source, source)
    }
}

/// Loads a function that asks its host each time it is loaded; this time it is let in.
async fn load_gated(pool: &AgentPool, limits: Limits) -> (Arc<dyn Function>, Host) {
    let (host, mut test) = host();
    let load = pool.load(limited("load-gate", limits), host);
    let answer = async {
        let asked = test.calls.recv().await.unwrap();
        _ = asked.answer.send(Ok(HostResult::Done.into()));
    };
    let (function, ()) = tokio::join!(load, answer);
    (function.unwrap(), test)
}

fn serving(pool: &AgentPool) -> AgentInfo {
    let mut agents = pool.agents().into_iter();
    agents.find(|agent| agent.state == AgentState::Serving).unwrap()
}

#[tokio::test]
async fn a_killed_agent_costs_the_calls_in_flight_and_nothing_else() {
    let pool = toys().await;
    let mut events = pool.subscribe();
    let (keep, _host) = load(&pool, "keep").await;
    let (who, _host) = load(&pool, "pid").await;
    let before = pid(&who).await;
    let held = start(&keep, "");
    // One answer that came over the link after the held call says that the agent has that, too.
    pid(&who).await;

    signal(before, Signal::KILL);
    let error = within(held).await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotReady);
    assert!(error.message.contains("died"), "{error}");
    let after = within(pid(&who)).await;
    assert_ne!(after, before);
    let (message, code) = stopped(&mut events).await;
    assert_eq!(code, 128 + 9);
    assert!(message.contains("signal 9"), "{message}");
    assert!(!exists(before));
}

#[tokio::test]
async fn calls_wait_while_their_function_is_moved() {
    let pool = toys().await;
    let limits = Limits {
        queue_depth: 2,
        ..Limits::default()
    };
    let (function, mut test) = load_gated(&pool, limits).await;

    signal(serving(&pool).pid, Signal::KILL);
    // The function is loading again when it asks again.
    let asked = within(test.calls.recv()).await.unwrap();
    let first = start(&function, "first");
    let second = start(&function, "second");
    let third = start(&function, "third");
    assert_eq!(third.await.unwrap().unwrap_err().kind, ErrorKind::Overloaded);
    _ = asked.answer.send(Ok(HostResult::Done.into()));
    assert_eq!(text(&within(first).await.unwrap().unwrap()), "first");
    assert_eq!(text(&within(second).await.unwrap().unwrap()), "second");
}

#[tokio::test]
async fn calls_do_not_wait_longer_than_they_may_run() {
    let pool = toys().await;
    let limits = Limits {
        wall_time: Duration::from_millis(200),
        ..Limits::default()
    };
    let (function, mut test) = load_gated(&pool, limits).await;
    signal(serving(&pool).pid, Signal::KILL);
    let _never_answered = within(test.calls.recv()).await.unwrap();
    let began = Instant::now();
    let error = within(call(&function, "")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotReady);
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_silent_agent_is_noticed_and_replaced() {
    let pool = toys().await;
    let mut events = pool.subscribe();
    let (keep, _host) = load(&pool, "keep").await;
    let (who, _host) = load(&pool, "pid").await;
    let before = pid(&who).await;
    let held = start(&keep, "");
    signal(before, Signal::STOP);
    let error = within(held).await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotReady);
    assert!(error.message.contains("silence"), "{error}");
    assert_ne!(within(pid(&who)).await, before);
    let (message, code) = stopped(&mut events).await;
    assert!(message.contains("silence"), "{message}");
    assert_eq!(code, 128 + 9);
}

#[tokio::test]
async fn an_agent_that_ends_by_itself_says_why() {
    let pool = toys().await;
    let mut events = pool.subscribe();
    let (panics, _host) = load(&pool, "panic").await;
    let error = within(call(&panics, "")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotReady);
    let (message, code) = stopped(&mut events).await;
    assert_eq!(code, 101);
    assert!(message.contains("toy panic"), "{message}");
}

#[tokio::test]
async fn a_condemned_agent_is_replaced_while_its_functions_go_on() {
    let pool = toys().await;
    let mut events = pool.subscribe();
    let (who, _host) = load(&pool, "pid").await;
    let (gate, mut gate_host) = load(&pool, "gate").await;
    let (condemn, mut condemn_host) = load(&pool, "condemn").await;
    let before = pid(&who).await;
    let held = start(&gate, "k");
    let asked = within(gate_host.calls.recv()).await.unwrap();

    // The offender's caller has the engine's answer.
    let error = within(call(&condemn, "")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::WallTimeout);
    let heard = within(condemn_host.events.recv()).await.unwrap();
    assert!(matches!(heard, EngineEvent::Condemned { .. }));
    // The neighbour never misses a call, and ends up elsewhere.
    within(async { while pid(&who).await == before {} }).await;
    loop {
        match within(events.recv()).await.unwrap() {
            AgentEvent::Condemned { .. } => break,
            AgentEvent::Started { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    // The call in flight still ends where it is.
    assert!(exists(before));
    _ = asked.answer.send(Ok(HostResult::Value.into()));
    within(held).await.unwrap().unwrap();
    let (message, _) = stopped(&mut events).await;
    assert!(message.contains("condemned"), "{message}");
    assert!(!exists(before));
    // The offender may try again, on another agent.
    let error = within(call(&condemn, "")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::WallTimeout);
}

#[tokio::test]
async fn who_kills_agents_again_and_again_gets_one_of_its_own() {
    let pool = toys().await;
    let (who, _host) = load(&pool, "pid").await;
    let (abort, _host) = load(&pool, "abort").await;
    for _ in 0..2 {
        let error = within(call(&abort, "")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotReady);
    }
    let neighbour = within(pid(&who)).await;
    for _ in 0..2 {
        assert_eq!(within(call(&abort, "")).await.unwrap_err().kind, ErrorKind::NotReady);
        assert_eq!(within(pid(&who)).await, neighbour);
    }
}

#[tokio::test]
async fn a_function_whose_first_load_kills_agents_is_refused() {
    let pool = toys().await;
    let (who, _host) = load(&pool, "pid").await;
    let (refused, _host) = within(try_load(&pool, spec("ns", "bad", "load-abort"))).await;
    let Err(LoadError::Engine(message)) = refused else {
        panic!("{refused:?}");
    };
    assert!(message.starts_with("3 agents ended while they loaded it"), "{message}");
    // The neighbour was hit once, for the rest the culprit had agents of its own.
    within(pid(&who)).await;
}

#[tokio::test]
async fn a_function_that_cannot_be_started_again_is_given_up() {
    let pool = AgentPool::start(AgentPoolConfig {
        quarantine: rules(100, Duration::from_secs(60)),
        ..config("toy")
    })
    .await
    .unwrap();
    let (who, _host) = load(&pool, "pid").await;
    let (function, mut test) = load_gated(&pool, Limits::default()).await;

    signal(pid(&who).await, Signal::KILL);
    let mut attempts = 0;
    let lost = loop {
        tokio::select! {
            asked = test.calls.recv() => {
                _ = asked.unwrap().answer.send(Err(deny()));
                attempts += 1;
            }
            event = within(test.events.recv()) => {
                if let EngineEvent::Lost { message } = event.unwrap() {
                    break message;
                }
            }
        }
    };
    assert_eq!(attempts, 5);
    let error = within(call(&function, "")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotReady);
    assert_eq!(error.message, lost);
    // Its neighbour is well.
    within(pid(&who)).await;
}

#[tokio::test]
async fn the_node_answers_for_an_agent_that_does_not() {
    let pool = AgentPool::start(AgentPoolConfig {
        reply_grace: Duration::from_millis(100),
        ..config("toy")
    })
    .await
    .unwrap();
    let limits = Limits {
        wall_time: Duration::from_millis(100),
        ..Limits::default()
    };
    let (keep, _host) = try_load(&pool, limited("keep", limits)).await;
    let keep = keep.unwrap();
    let error = within(call(&keep, "")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::WallTimeout);

    // One that leaves many calls unanswered is replaced.
    let mut events = pool.subscribe();
    let calls: Vec<_> = (0..20).map(|_| start(&keep, "")).collect();
    for answer in calls {
        assert_eq!(within(answer).await.unwrap().unwrap_err().kind, ErrorKind::WallTimeout);
    }
    let (message, _) = stopped(&mut events).await;
    assert!(message.contains("condemned"), "{message}");
}

#[tokio::test]
async fn calls_beyond_what_an_agent_may_hold_are_refused_at_once() {
    let pool = toys().await;
    let limits = Limits {
        queue_depth: 3,
        concurrency: 2,
        instances: 1,
        ..Limits::default()
    };
    let (keep, _host) = try_load(&pool, limited("keep", limits)).await;
    let keep = keep.unwrap();
    let held: Vec<_> = (0..10).map(|_| start(&keep, "")).collect();
    let error = within(call(&keep, "")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Overloaded);
    drop((held, Arc::clone(&pool)));
}

#[tokio::test]
async fn an_undeployed_function_answers_not_ready_and_others_stay() {
    let pool = toys().await;
    let (who, _host) = load(&pool, "pid").await;
    let before = pid(&who).await;
    let (echo, _host) = load(&pool, "echo").await;
    call(&echo, "x").await.unwrap();
    drop(echo);
    assert_eq!(pid(&who).await, before);
    let serving = pool.agents().into_iter().find(|agent| agent.pid == before).unwrap();
    assert_eq!(serving.functions, ["ns-pid"]);
}
