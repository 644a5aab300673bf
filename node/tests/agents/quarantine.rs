//! Functions that cost agents, and are given no more of them for a while.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nex_node::agents::{AgentEvent, AgentPool, AgentPoolConfig, AgentState};
use nex_node::in_process::InProcess;
use nex_runtime::engine::{Engine, EngineEvent, Function, FunctionSpec, Limits, LoadError};
use nex_runtime::invocation::ErrorKind;
use nex_runtime::v8::{V8Config, V8Engine};

use crate::support::*;

/// Cannot be stopped when it is given something, answers when it is not.
const MOODY: &str =
    "(s, payload) => payload.length ? Array.prototype.includes.call({ length: 2 ** 53 - 1 }, 1) : 'well'";

const MINUTE: Duration = Duration::from_secs(60);

async fn pool(config: AgentPoolConfig, after: u32, duration: Duration) -> Arc<AgentPool> {
    let quarantine = rules(after, duration);
    AgentPool::start(AgentPoolConfig { quarantine, ..config })
        .await
        .unwrap()
}

fn moody(source: &str) -> FunctionSpec {
    FunctionSpec {
        limits: Limits {
            wall_time: Duration::from_millis(200),
            cpu_time: Duration::from_millis(200),
            ..Limits::default()
        },
        ..spec("ns", "moody", source)
    }
}

struct Told {
    since: SystemTime,
    until: SystemTime,
    message: String,
}

async fn quarantined(host: &mut Host) -> Told {
    loop {
        if let EngineEvent::Quarantined { since, until, message } = within(host.events.recv()).await.unwrap() {
            return Told { since, until, message };
        }
    }
}

async fn heard(host: &mut Host, wanted: impl Fn(&EngineEvent) -> bool) {
    while !wanted(&within(host.events.recv()).await.unwrap()) {}
}

/// Calls it so that it cannot be stopped, and waits until that is known.
async fn offend(function: &Arc<dyn Function>, host: &mut Host) {
    let error = within(call(function, "x")).await.unwrap_err();
    assert!(
        matches!(error.kind, ErrorKind::CpuTimeout | ErrorKind::WallTimeout),
        "{error}"
    );
    heard(host, |event| matches!(event, EngineEvent::Condemned { .. })).await;
}

/// What an engine does with a function that offends: the same with agents and without.
async fn life_cycle(engine: &dyn Engine) {
    let load = async |spec: FunctionSpec| {
        let (host, test) = host();
        (engine.load(spec, host).await, test)
    };
    let (echo, _host) = load(spec("ns", "echo", "(s, p) => p")).await;
    let echo = echo.unwrap();
    let (function, mut host) = load(moody(MOODY)).await;
    let function = function.unwrap();

    offend(&function, &mut host).await;
    assert_eq!(text(&within(call(&function, "")).await.unwrap()), "well");
    offend(&function, &mut host).await;
    let told = quarantined(&mut host).await;
    assert_eq!(told.until.duration_since(told.since).unwrap(), Duration::from_secs(2));
    let error = within(call(&function, "")).await.unwrap_err();
    assert_eq!((error.kind, &error.message), (ErrorKind::Quarantined, &told.message));
    for part in [
        "quarantined since 2",
        "Z until 2",
        "2 times it has cost its agent",
        "its code did not stop",
    ] {
        assert!(error.message.contains(part), "{part}: {error}");
    }
    assert_eq!(text(&within(call(&echo, "x")).await.unwrap()), "x");

    // The same bytes have the same history, whatever they are called; others start clean.
    let (again, _host) = load(FunctionSpec {
        name: "twin".into(),
        id: "twin".into(),
        ..moody(MOODY)
    })
    .await;
    assert_eq!(again.unwrap_err(), LoadError::Quarantined(told.message));
    let (fixed, _host) = load(moody("() => 'fixed'")).await;
    assert_eq!(text(&within(call(&fixed.unwrap(), "x")).await.unwrap()), "fixed");
    let (elsewhere, _host) = load(FunctionSpec {
        namespace: "other".into(),
        ..moody(MOODY)
    })
    .await;
    assert_eq!(text(&within(call(&elsewhere.unwrap(), "")).await.unwrap()), "well");

    // When the time is over it is well again, and on trial: one more offence is enough.
    heard(&mut host, |event| *event == EngineEvent::Released).await;
    let well = async {
        loop {
            match call(&function, "").await {
                Ok(reply) => break reply,
                Err(error) => assert_eq!(error.kind, ErrorKind::NotReady, "{error}"),
            }
        }
    };
    assert_eq!(text(&within(well).await), "well");
    offend(&function, &mut host).await;
    let told = quarantined(&mut host).await;
    assert_eq!(told.until.duration_since(told.since).unwrap(), Duration::from_secs(4));
    assert_eq!(
        within(call(&function, "")).await.unwrap_err().kind,
        ErrorKind::Quarantined
    );
    assert_eq!(text(&within(call(&echo, "x")).await.unwrap()), "x");
}

#[tokio::test]
async fn code_that_cannot_be_stopped_is_quarantined_and_gets_another_chance() {
    let pool = pool(v8_config(), 2, Duration::from_secs(2)).await;
    life_cycle(&*pool).await;
}

#[tokio::test]
async fn in_process_it_is_quarantined_as_well() {
    let engine = Arc::new(V8Engine::new(V8Config::default()).unwrap());
    life_cycle(&InProcess::new(engine, rules(2, Duration::from_secs(2)))).await;
}

#[tokio::test]
async fn a_crash_is_blamed_on_the_function_whose_thread_it_was() {
    let pool = pool(config("toy"), 1, MINUTE).await;
    let (one, _host) = try_load(&pool, spec("ns", "one", "pid")).await;
    let (two, _host) = try_load(&pool, spec("ns", "two", "pid")).await;
    let (one, two) = (one.unwrap(), two.unwrap());
    let (keep, mut keep_host) = load(&pool, "keep").await;
    let (crash, mut crash_host) = try_load(&pool, spec("ns", "crash-in-a-thread", "crash")).await;
    let crash = crash.unwrap();
    let before = pid(&one).await;
    assert_eq!(pid(&two).await, before);

    // All of these are at work when it happens.
    let held: Vec<_> = (0..5).map(|_| start(&keep, "")).collect();
    let error = within(call(&crash, "")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotReady);
    for answer in held {
        assert_eq!(within(answer).await.unwrap().unwrap_err().kind, ErrorKind::NotReady);
    }
    let told = quarantined(&mut crash_host).await;
    assert!(told.message.contains("it died"), "{}", told.message);
    assert_eq!(within(call(&crash, "")).await.unwrap_err().kind, ErrorKind::Quarantined);

    // The others are together again, unsuspected.
    let after = within(pid(&one)).await;
    assert_ne!(after, before);
    assert_eq!(within(pid(&two)).await, after);
    assert!(keep_host.events.try_recv().is_err());
    let serving = pool.agents().into_iter().find(|agent| agent.pid == after).unwrap();
    assert_eq!(serving.functions, ["ns-keep", "ns-one", "ns-two"]);
}

#[tokio::test]
async fn a_kill_from_outside_is_held_against_nobody_that_had_neighbours() {
    let pool = pool(config("toy"), 1, MINUTE).await;
    let (who, mut host) = load(&pool, "pid").await;
    let (keep, mut keep_host) = load(&pool, "keep").await;
    for _ in 0..2 {
        let _held = start(&keep, "");
        let _other = start(&who, "");
        let agent = within(pid(&who)).await;
        signal(agent, rustix::process::Signal::KILL);
        while within(pid_or_not_ready(&who)).await.is_none_or(|pid| pid == agent) {}
    }
    assert!(host.events.try_recv().is_err());
    assert!(keep_host.events.try_recv().is_err());
}

async fn pid_or_not_ready(function: &Arc<dyn Function>) -> Option<u32> {
    match call(function, "").await {
        Ok(reply) => text(&reply).parse().ok(),
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::NotReady, "{error}");
            None
        }
    }
}

#[tokio::test]
async fn code_that_kills_its_agent_by_loading_is_not_loaded_again() {
    let pool = pool(config("toy"), 2, MINUTE).await;
    let mut events = pool.subscribe();
    let (refused, _host) = within(try_load(&pool, spec("ns", "bad", "load-abort"))).await;
    // The first death may have been chance; the next two were on agents of its own.
    let Err(LoadError::Quarantined(message)) = refused else {
        panic!("{refused:?}");
    };
    assert!(message.contains("2 times it has cost its agent"), "{message}");
    let count = |events: &mut tokio::sync::broadcast::Receiver<AgentEvent>| {
        std::iter::from_fn(|| events.try_recv().ok())
            .filter(|event| matches!(event, AgentEvent::Stopped { .. }))
            .count()
    };
    while pool.agents().iter().any(|agent| agent.state == AgentState::Dead) {
        tokio::task::yield_now().await;
    }
    assert_eq!(count(&mut events), 3);
    let (refused, _host) = within(try_load(&pool, spec("ns", "worse", "load-abort"))).await;
    assert_eq!(refused.unwrap_err(), LoadError::Quarantined(message));
    assert_eq!(count(&mut events), 0);
}

#[tokio::test]
async fn a_quarantined_function_can_be_undeployed_and_the_pool_shut_down() {
    let pool = pool(config("toy"), 1, MINUTE).await;
    let (gone, mut host) = load(&pool, "condemn").await;
    within(call(&gone, "")).await.unwrap_err();
    quarantined(&mut host).await;
    drop(gone);
    // Whoever watched over it has let go.
    within(async { while host.events.recv().await.is_some() {} }).await;

    let (kept, mut host) = try_load(
        &pool,
        FunctionSpec {
            namespace: "b".into(),
            ..spec("b", "kept", "condemn")
        },
    )
    .await;
    let kept = kept.unwrap();
    within(call(&kept, "")).await.unwrap_err();
    quarantined(&mut host).await;
    within(pool.shutdown()).await;
    assert_eq!(within(call(&kept, "")).await.unwrap_err().kind, ErrorKind::NotReady);
}

#[tokio::test]
async fn a_quarantine_keeps_nobody_from_the_next_warm_agent() {
    let pool = pool(v8_config(), 1, MINUTE).await;
    let (echo, _host) = try_load(&pool, spec("ns", "echo", "(s, p) => p")).await;
    let (echo, (function, mut host)) = (echo.unwrap(), try_load(&pool, moody(MOODY)).await);
    // It shares the record of the offender, and so the quarantine, but not the offence: it has to be moved.
    let twin = FunctionSpec {
        name: "twin".into(),
        id: "twin".into(),
        ..moody(MOODY)
    };
    let (twin, mut twin_host) = try_load(&pool, twin).await;
    let _twin = twin.unwrap();
    within(async {
        while pool.available_agents() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut events = pool.subscribe();

    offend(&function.unwrap(), &mut host).await;
    // It is undeployed as soon as that is known, which clears nobody.
    quarantined(&mut twin_host).await;
    let started = async { while !matches!(events.recv().await.unwrap(), AgentEvent::Started { .. }) {} };
    within(started).await;
    assert_eq!(text(&within(call(&echo, "x")).await.unwrap()), "x");
    pool.shutdown().await;
}
