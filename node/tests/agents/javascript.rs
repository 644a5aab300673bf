//! The pool with real agents and V8.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nex_node::agents::{AgentEvent, AgentPool, AgentState};
use nex_runtime::engine::{EngineEvent, FunctionSpec, Limits, LoadError};
use nex_runtime::host_services::{HostResponse, HostResult, Operation};
use nex_runtime::invocation::{ErrorKind, Reply};
use nex_runtime::logs::LogLevel;
use rustix::process::Signal;
use tokio::sync::mpsc;

use crate::support::*;

const ECHO: &str = "(subject, payload) => payload";

async fn v8() -> Arc<AgentPool> {
    AgentPool::start(v8_config()).await.unwrap()
}

fn limited(wall_time: Duration, name: &str, source: &str) -> FunctionSpec {
    FunctionSpec {
        limits: Limits {
            wall_time,
            ..Limits::default()
        },
        ..spec("ns", name, source)
    }
}

#[tokio::test]
async fn bytes_megabytes_errors_and_streams_pass_through() {
    let pool = v8().await;
    let (echo, _host) = load(&pool, ECHO).await;
    let bytes: Bytes = (0..=255).collect();
    assert_eq!(call(&echo, bytes.clone()).await.unwrap().body, bytes);
    let large: Bytes = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
    for _ in 0..10 {
        assert_eq!(call(&echo, large.clone()).await.unwrap().body, large);
    }

    let (throw, _host) = load(&pool, "() => { throw new TypeError('x') }").await;
    let error = call(&throw, "").await.unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::Exception, "TypeError: x")
    );
    assert!(error.stack.is_some());

    let (stream, _host) = load(
        &pool,
        "async function* f() { for (let i = 0; i < 100; i++) yield `${i}` } f",
    )
    .await;
    let (sender, mut replies) = mpsc::unbounded_channel();
    stream.invoke(trigger(""), Box::new(sender));
    for i in 0..100 {
        assert_eq!(within(replies.recv()).await.unwrap().unwrap().body, i.to_string());
    }
    assert_eq!(within(replies.recv()).await.unwrap().unwrap(), Reply::default());

    let (refused, _host) = try_load(&pool, spec("ns", "bad", "(")).await;
    assert!(matches!(refused, Err(LoadError::Syntax(_))), "{refused:?}");
}

#[tokio::test]
async fn kill_nine_under_load_leaves_no_call_unanswered() {
    let pool = v8().await;
    let (echo, _host) = load(&pool, ECHO).await;
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..20)
        .map(|i| {
            let echo = echo.clone();
            let stop = stop.clone();
            tokio::spawn(async move {
                let (mut answered, mut lost, mut slowest) = (0, 0, Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    let body = format!("{i} {answered}");
                    let began = Instant::now();
                    match within(call(&echo, body.clone())).await {
                        Ok(reply) => assert_eq!(text(&reply), body),
                        Err(error) => {
                            assert_eq!(error.kind, ErrorKind::NotReady, "{error}");
                            lost += 1;
                        }
                    }
                    slowest = slowest.max(began.elapsed());
                    answered += 1;
                }
                (answered, lost, slowest)
            })
        })
        .collect();
    let mut events = pool.subscribe();
    for _ in 0..3 {
        // Under way again, and then killed again.
        for _ in 0..100 {
            within(call(&echo, "x")).await.ok();
        }
        let serving = pool
            .agents()
            .into_iter()
            .find(|agent| agent.state == AgentState::Serving);
        if let Some(agent) = serving {
            signal(agent.pid, Signal::KILL);
            assert_eq!(stopped(&mut events).await.1, 128 + 9);
        }
    }
    assert_eq!(text(&within(call(&echo, "alive")).await.unwrap()), "alive");
    stop.store(true, Ordering::Relaxed);
    let mut lost = 0;
    for caller in callers {
        let (answered, failed, slowest) = caller.await.unwrap();
        assert!(answered > 0);
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
        lost += failed;
    }
    // At most what was in flight at each kill.
    assert!(lost <= 3 * 21, "{lost}");
}

#[tokio::test]
async fn code_that_cannot_be_stopped_costs_its_agent_but_no_neighbour() {
    let pool = v8().await;
    let mut events = pool.subscribe();
    let (echo, _host) = load(&pool, ECHO).await;
    let source = "() => Array.prototype.includes.call({ length: 2 ** 53 - 1 }, 1)";
    let (stuck, mut host) = try_load(&pool, limited(Duration::from_millis(200), "stuck", source)).await;
    let stuck = stuck.unwrap();
    let before = pool
        .agents()
        .into_iter()
        .find(|agent| agent.state == AgentState::Serving)
        .unwrap();

    let answer = start(&stuck, "");
    let (mut condemned, mut calls) = (false, 0);
    // The neighbour is called all the while, until the process is gone.
    loop {
        assert_eq!(text(&within(call(&echo, "neighbour")).await.unwrap()), "neighbour");
        calls += 1;
        match events.try_recv() {
            Ok(AgentEvent::Condemned { .. }) => condemned = true,
            Ok(AgentEvent::Stopped { id, .. }) if id == before.id => break,
            _ => {}
        }
    }
    assert!(condemned);
    assert!(calls > 10);
    assert!(!exists(before.pid));
    let error = within(answer).await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::WallTimeout);
    within(async {
        loop {
            if let EngineEvent::Condemned { .. } = host.events.recv().await.unwrap() {
                break;
            }
        }
    })
    .await;
}

/// So that `top -H` shows whose it is, and a crash on it can be told from one of a neighbour.
#[tokio::test]
async fn the_thread_of_an_instance_bears_the_first_bytes_of_its_workloads_id() {
    let pool = v8().await;
    let (function, _host) = try_load(&pool, spec("ns", "0123456789abcdef", ECHO)).await;
    let function = function.unwrap();
    call(&function, "x").await.unwrap();
    let agents = pool.agents();
    let serving = agents.iter().find(|agent| agent.state == AgentState::Serving).unwrap();
    let threads = std::fs::read_dir(format!("/proc/{}/task", serving.pid)).unwrap();
    let names: Vec<String> = threads
        .filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).ok())
        .collect();
    assert!(names.iter().any(|name| name == "ns-0123456789ab\n"), "{names:?}");
}

#[tokio::test]
async fn an_endless_loop_ends_at_its_limit_and_costs_nobody_anything() {
    let pool = v8().await;
    let (echo, _host) = load(&pool, ECHO).await;
    let source = "(s, payload) => { if (payload.length) for (;;); return 'back' }";
    let (forever, _host) = try_load(&pool, limited(Duration::from_millis(200), "forever", source)).await;
    let forever = forever.unwrap();
    let before = pool.agents();
    let error = within(call(&forever, "x")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::WallTimeout);
    assert_eq!(text(&within(call(&forever, "")).await.unwrap()), "back");
    assert_eq!(text(&within(call(&echo, "x")).await.unwrap()), "x");
    let pids = |agents: &[nex_node::agents::AgentInfo]| {
        let serving = agents.iter().filter(|agent| agent.state == AgentState::Serving);
        serving.map(|agent| agent.pid).collect::<Vec<_>>()
    };
    assert_eq!(pids(&pool.agents()), pids(&before));
}

#[tokio::test]
async fn a_flood_of_logs_is_cut_and_told_and_the_function_still_answers() {
    let pool = v8().await;
    let source =
        "(s, payload) => { for (let i = 0; i < payload.length; i++) console.warn(`line ${i}`); return 'done' }";
    // What was dropped is told at the latest when the instance ends, here by hibernation.
    let spec = FunctionSpec {
        limits: Limits {
            hibernate_after: Duration::from_millis(100),
            ..Limits::default()
        },
        ..spec("ns", "flood", source)
    };
    let (flood, mut host) = try_load(&pool, spec).await;
    let flood = flood.unwrap();
    let said = 100_000;
    let reply = within(call(&flood, vec![0; said])).await.unwrap();
    assert_eq!(text(&reply), "done");
    // Neither agent nor node drop what the runtime lets through.
    for i in 0..1_000 {
        let line = within(host.logs.recv()).await.unwrap();
        assert_eq!((line.level, line.text), (LogLevel::Warn, format!("line {i}")));
    }
    let told = within(host.logs.recv()).await.unwrap();
    assert_eq!(told.text, "99000 log lines dropped: the limit is 1000 in 10 s");
    let reply = within(call(&flood, vec![0; 1])).await.unwrap();
    assert_eq!(text(&reply), "done");
}

#[tokio::test]
async fn results_on_their_way_from_stores_are_bounded_in_bytes() {
    const GETS: usize = 40;
    let pool = v8().await;
    let source = format!(
        "export default async (msg, env) => {{
            const objects = env.objects('files');
            const gets = Array.from({{ length: {GETS} }}, (_, i) => objects.get(`${{i}}`));
            await env.nats.publish('asked', '');
            return (await Promise.all(gets)).length;
        }}"
    );
    let (function, mut host) = load(&pool, &source).await;
    let answer = start(&function, "");

    // The one that brings nothing back does not have to wait; those before it have got as far as they can.
    let mut waiting = Vec::new();
    loop {
        let call = within(host.calls.recv()).await.unwrap();
        if matches!(call.request.operation, Operation::Publish { .. }) {
            call.answer.send(Ok(HostResult::Done.into())).unwrap();
            break;
        }
        waiting.push(call);
    }
    assert!((1..=4).contains(&waiting.len()), "{} objects at once", waiting.len());
    // All get their turn.
    for _ in 0..GETS {
        let call = match waiting.pop() {
            Some(call) => call,
            None => within(host.calls.recv()).await.unwrap(),
        };
        let response = HostResponse {
            result: HostResult::Value,
            payload: Bytes::from_static(b"small"),
        };
        call.answer.send(Ok(response)).unwrap();
    }
    assert_eq!(text(&within(answer).await.unwrap().unwrap()), GETS.to_string());
}
