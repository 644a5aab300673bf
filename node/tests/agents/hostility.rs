//! Agents that break the protocol, or try to.

use nex_node::agents::AgentPool;
use nex_runtime::engine::{FunctionSpec, Limits};
use nex_runtime::invocation::ErrorKind;

use crate::hostile::{FLOOD, PILE, SURPLUS};
use crate::support::*;

#[tokio::test]
async fn an_agent_that_breaks_the_protocol_is_killed() {
    for (role, crime) in [
        ("deployed-twice", "second result of one deploy"),
        ("hello-twice", "second hello"),
        ("forged-host-call", "a function it was never given"),
        ("forged-log", "a function it was never given"),
        ("forged-reply", "a call it was never given"),
        ("same-host-call", "two host calls with one id"),
    ] {
        let pool = AgentPool::start(config(role)).await.unwrap();
        let mut events = pool.subscribe();
        let (_function, _host) = try_load(&pool, spec("ns", "f", "any")).await;
        let (message, code) = stopped(&mut events).await;
        assert!(
            message.contains("breaking the protocol") && message.contains(crime),
            "{role}: {message}"
        );
        assert_eq!(code, 128 + 9, "{role}");
    }
}

#[tokio::test]
async fn host_calls_are_bounded_whatever_the_agent_says() {
    let pool = AgentPool::start(config("pile")).await.unwrap();
    let limits = Limits {
        host_calls: 128,
        instances: 8,
        ..Limits::default()
    };
    let (function, mut host) = try_load(
        &pool,
        FunctionSpec {
            limits,
            ..spec("ns", "any", "any")
        },
    )
    .await;
    let function = function.unwrap();
    let answer = start(&function, "");
    let mut asked = Vec::new();
    for _ in SURPLUS..PILE {
        asked.push(within(host.calls.recv()).await.unwrap());
    }
    // None of them has been answered: answers would make room for others.
    assert_eq!(text(&within(answer).await.unwrap().unwrap()), SURPLUS.to_string());
    assert!(
        host.calls.try_recv().is_err(),
        "no call beyond the bound reaches the host"
    );
}

#[tokio::test]
async fn logs_are_bounded_whatever_the_agent_says() {
    let pool = AgentPool::start(config("log-flood")).await.unwrap();
    let (function, mut host) = load(&pool, "any").await;
    within(call(&function, "")).await.unwrap();
    let mut lines = 0;
    while let Ok(line) = host.logs.try_recv() {
        assert!(line.text.chars().count() <= 10_100, "long lines are cut");
        lines += 1;
    }
    assert!(lines < FLOOD / 4, "{lines} lines");
}

#[tokio::test]
async fn replies_are_bounded_and_only_the_first_counts() {
    let pool = AgentPool::start(config("big-reply")).await.unwrap();
    let (function, _host) = load(&pool, "any").await;
    let error = within(call(&function, "")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::PayloadTooLarge);

    let pool = AgentPool::start(config("answers-twice")).await.unwrap();
    let (function, _host) = load(&pool, "any").await;
    for _ in 0..3 {
        assert_eq!(text(&within(call(&function, "")).await.unwrap()), "first");
    }
}
