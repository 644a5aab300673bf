//! The V8 engine through its public interface: what functions get, what callers get, and what happens to code that
//! does not end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nex_runtime::engine::{EngineEvent, Limit, LimitHit, Limits, LoadError};
use nex_runtime::harness::{Harness, HarnessFunction};
use nex_runtime::invocation::{ErrorKind, Trigger};
use nex_runtime::logs::LogSink;
use nex_runtime::v8::{V8Config, V8Engine};

async fn load(source: &str) -> HarnessFunction {
    Harness::new().unwrap().load(source.to_owned()).await.unwrap()
}

fn short(wall_time: Duration) -> Harness {
    Harness::new().unwrap().limits(Limits {
        wall_time,
        ..Limits::default()
    })
}

/// A harness whose functions may use so much processor time, however busy the machine is.
fn frugal(cpu_time: Duration) -> Harness {
    Harness::new().unwrap().limits(Limits {
        cpu_time,
        ..Limits::default()
    })
}

async fn refused(source: &str) -> LoadError {
    short(Duration::from_millis(300))
        .load(source.to_owned())
        .await
        .unwrap_err()
}

async fn reply(source: &str) -> Bytes {
    load(source).await.call("a.b", "payload").await.unwrap().body
}

#[tokio::test]
async fn classic_functions_get_subject_and_bytes() {
    let source = "(subject, payload) => ({ subject, text: String.fromCharCode(...payload), \
                  bytes: payload instanceof Uint8Array })";
    assert_eq!(
        reply(source).await,
        r#"{"subject":"a.b","text":"payload","bytes":true}"#
    );
}

#[tokio::test]
async fn results_become_replies_by_type() {
    for (result, expected) in [
        ("new Uint8Array([0, 255, 128])", &b"\x00\xff\x80"[..]),
        ("new Uint8Array([1, 2, 3]).buffer", b"\x01\x02\x03"),
        ("'gr\\u00fc\\u00df'", "grüß".as_bytes()),
        ("undefined", b""),
        ("null", b"null"),
        ("42", b"42"),
        ("[1, 'a']", br#"[1,"a"]"#),
        ("new Uint16Array([1, 2])", br#"{"0":1,"1":2}"#),
        ("Promise.resolve('later')", b"later"),
        ("({ then(resolve) { resolve('thenable') } })", b"thenable"),
        ("new Reply(new Uint8Array([7]))", b"\x07"),
        ("new Promise((done) => setTimeout(done, 5, 'timer'))", b"timer"),
    ] {
        assert_eq!(&reply(&format!("() => {result}")).await[..], expected, "{result}");
    }
}

#[tokio::test]
async fn modules_get_message_env_and_context() {
    let source = r#"export default async (msg, env, ctx) => {
        await null;
        return { subject: msg.subject, text: msg.text(), trace: msg.headers.get("Trace"), reply: msg.reply,
                 name: env.vars.NAME, left: ctx.deadline - Date.now(), aborted: ctx.signal.aborted, id: typeof ctx.id };
    }"#;
    let harness = Harness::new().unwrap().vars([("NAME".to_owned(), "nex".to_owned())]);
    let function = harness.load(source).await.unwrap();
    let trigger = Trigger {
        subject: "s".into(),
        reply: Some("_INBOX.1".into()),
        headers: vec![("Trace".into(), "t1".into())],
        payload: "hi".into(),
    };
    let body = function.trigger(trigger).await.unwrap().body;
    let mut answer: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let left = answer
        .as_object_mut()
        .unwrap()
        .remove("left")
        .unwrap()
        .as_f64()
        .unwrap();
    assert!((25_000.0..=30_001.0).contains(&left), "{left}");
    let expected = serde_json::json!({
        "subject": "s", "text": "hi", "trace": "t1", "reply": "_INBOX.1", "name": "nex", "aborted": false, "id": "string",
    });
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn a_module_may_export_an_object_with_message() {
    let source = "export default { greeting: 'hello', message(msg) { return `${this.greeting} ${msg.text()}` } }";
    assert_eq!(reply(source).await, "hello payload");
}

#[tokio::test]
async fn replies_carry_headers() {
    let function = load("() => new Reply('body', { headers: { A: '1', B: ['2', '3'] } })").await;
    let reply = function.call("s", "").await.unwrap();
    let expected: Vec<_> = [("A", "1"), ("B", "2"), ("B", "3")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
    assert_eq!((reply.headers, &reply.body[..]), (expected, &b"body"[..]));
    let function = load("() => new Reply('', { headers: { A: 'x\\r\\nForged: y' } })").await;
    assert_eq!(
        function.call("s", "").await.unwrap_err().name.as_deref(),
        Some("TypeError")
    );
}

#[tokio::test]
async fn an_async_generator_streams() {
    let function =
        load("export default async function* (msg) { yield 1; yield 'two'; yield new Uint8Array([3]); }").await;
    let replies = function.stream(Trigger::default()).await;
    let bodies: Vec<_> = replies.into_iter().map(|reply| reply.unwrap().body).collect();
    assert_eq!(bodies, ["1".as_bytes(), b"two", b"\x03", b""]);
    let function = load("export default async function* () { yield 'one'; throw new Error('midway') }").await;
    let replies = function.stream(Trigger::default()).await;
    assert_eq!(replies.len(), 2);
    assert_eq!(replies[1].as_ref().unwrap_err().message, "Error: midway");
}

#[tokio::test]
async fn exceptions_are_typed_errors_with_a_stack() {
    for source in [
        "\n(s, p) => { throw new TypeError('x') }",
        "\nasync () => { throw new TypeError('x') }",
        "\nasync () => { await null; throw new TypeError('x') }",
        "\nexport default () => { throw new TypeError('x') }",
    ] {
        let error = load(source).await.call("s", "").await.unwrap_err();
        assert_eq!(
            (error.kind, error.message.as_str()),
            (ErrorKind::Exception, "TypeError: x"),
            "{source}"
        );
        assert_eq!(error.name.as_deref(), Some("TypeError"));
        let stack = error.stack.unwrap();
        assert!(stack.contains("file:///function.js:2:"), "{stack}");
    }
    assert_eq!(
        load("() => { throw 'text' }")
            .await
            .call("s", "")
            .await
            .unwrap_err()
            .message,
        "text"
    );
    let error = load("() => 1n").await.call("s", "").await.unwrap_err();
    assert_eq!(error.name.as_deref(), Some("TypeError"));
}

#[tokio::test]
async fn a_call_after_an_exception_succeeds() {
    let function = load("(s) => { if (s === 'bad') throw new Error('no'); return s }").await;
    for _ in 0..3 {
        function.call("bad", "").await.unwrap_err();
        assert_eq!(function.call("good", "").await.unwrap().body, "good");
    }
}

#[tokio::test]
async fn load_errors_say_what_and_where() {
    for (source, name, position) in [
        ("\n\n(s, p) => { return }}", "SyntaxError", "file:///function.js:3:"),
        (
            "export default (msg) => {\n  retrun 1;\n}",
            "SyntaxError",
            "file:///function.js:2:",
        ),
        ("\nnull.x", "TypeError", "file:///function.js:2:"),
        (
            "export default 1;\nthrow new Error('top')",
            "Error: top",
            "file:///function.js:2:",
        ),
        (
            "export default 1;\nawait null; throw new Error('top')",
            "Error: top",
            "file:///function.js:2:",
        ),
        ("import x from './x.js'; export default x", "cannot import", "./x.js"),
    ] {
        let error = refused(source).await;
        let text = error.to_string();
        assert!(text.contains(name) && text.contains(position), "{source}: {error:?}");
        assert_eq!(
            matches!(error, LoadError::Syntax(_)),
            !text.contains("Error: top") && !text.contains("TypeError: Cannot read"),
            "{error:?}"
        );
    }
    assert!(matches!(refused("42").await, LoadError::NoFunction(text) if text.contains("number")));
    assert!(matches!(refused("export const x = 1").await, LoadError::NoFunction(_)));
    assert!(matches!(
        refused("export default { fetch() {} }").await,
        LoadError::NoFunction(_)
    ));
    assert!(matches!(refused("for (;;) {}").await, LoadError::Timeout(_)));
    assert!(matches!(
        refused("export default 1; for (;;) {}").await,
        LoadError::Timeout(_)
    ));
    assert!(matches!(
        refused("await new Promise(() => {}); export default 1").await,
        LoadError::Threw(_)
    ));
    assert!(matches!(
        refused("await new Promise((done) => setTimeout(done, 60000)); export default 1").await,
        LoadError::Timeout(_)
    ));
    let invalid = Harness::new().unwrap().load(Bytes::from_static(b"\xff\xfe")).await;
    assert!(matches!(invalid, Err(LoadError::InvalidArtifact(_))));
}

#[tokio::test]
async fn code_that_does_not_end_is_terminated_and_the_next_call_succeeds() {
    for body in [
        "for (;;) {}",
        "for (;;) new Array(1000).fill(1)",
        "/(a+)+$/.test('a'.repeat(40) + 'b')",
        "[3, 1, 2].sort(() => { for (;;) {} })",
        "return (async () => { for (;;) await null })()",
        "Promise.resolve().then(function f() { return Promise.resolve().then(f) }); for (;;) {}",
    ] {
        let source = format!("(s) => {{ if (s === 'spin') {{ {body} }} return 'fine' }}");
        let cpu_time = Duration::from_millis(100);
        let function = frugal(cpu_time).load(source).await.unwrap();
        for _ in 0..2 {
            let began = Instant::now();
            let error = function.call("spin", "").await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::CpuTimeout, "{body}: {error:?}");
            assert!(began.elapsed() >= cpu_time, "{body}");
            assert_eq!(function.call("fine", "").await.unwrap().body, "fine", "{body}");
        }
        assert!(matches!(
            function.events()[0],
            EngineEvent::LimitHit(LimitHit {
                limit: Limit::CpuTime,
                ..
            })
        ));
        assert!(
            !function
                .events()
                .iter()
                .any(|event| matches!(event, EngineEvent::Condemned { .. })),
            "{body}"
        );
    }
}

#[tokio::test]
async fn code_that_cannot_be_terminated_is_condemned_and_its_callers_answered() {
    let source = "(s) => s === 'spin' ? Array.prototype.includes.call({ length: 2 ** 53 - 1 }, 1) : 'fine'";
    let function = frugal(Duration::from_millis(100)).load(source).await.unwrap();
    assert_eq!(function.call("spin", "").await.unwrap_err().kind, ErrorKind::CpuTimeout);
    assert_eq!(function.call("fine", "").await.unwrap().body, "fine");
    while !function
        .events()
        .iter()
        .any(|event| matches!(event, EngineEvent::Condemned { .. }))
    {
        assert_eq!(function.call("fine", "").await.unwrap().body, "fine");
    }
}

#[tokio::test]
async fn a_top_level_that_cannot_be_terminated_does_not_keep_its_loader_waiting() {
    let harness = Harness::new().unwrap().limits(Limits {
        startup_cpu_time: Duration::from_millis(100),
        ..Limits::default()
    });
    let source = "Array.prototype.includes.call({ length: 2 ** 53 - 1 }, 1); () => 'never'";
    let error = harness.load(source).await.unwrap_err();
    assert!(
        matches!(
            error,
            LoadError::Limit(LimitHit {
                limit: Limit::StartupCpuTime,
                ..
            })
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_awaiting_call_times_out_without_harming_others() {
    let source = "export default async (msg, env, ctx) => {
        if (msg.text() === 'wait') await new Promise((_, fail) => {
            ctx.signal.addEventListener('abort', () => { console.warn('aborted'); fail(ctx.signal.reason) });
            setTimeout(() => {}, 3600_000);
        });
        return 'fine';
    }";
    let function = short(Duration::from_millis(200)).load(source).await.unwrap();
    let waiting = function.call("s", "wait");
    let other = async {
        for _ in 0..50 {
            assert_eq!(function.call("s", "now").await.unwrap().body, "fine");
        }
    };
    let (waited, ()) = tokio::join!(waiting, other);
    assert_eq!(waited.unwrap_err().kind, ErrorKind::WallTimeout);
    assert_eq!(function.call("s", "now").await.unwrap().body, "fine");
    while !function.logs().iter().any(|line| line.text == "aborted") {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_promise_that_nothing_can_settle_fails_at_once() {
    let began = Instant::now();
    let error = load("() => new Promise(() => {})")
        .await
        .call("s", "")
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Exception);
    assert!(error.message.contains("never settle"), "{error}");
    assert!(began.elapsed() < Limits::default().wall_time);
}

#[tokio::test]
async fn heap_bombs_end_with_a_memory_error() {
    for bomb in [
        "const a = []; for (;;) a.push(new Array(1000).fill(a.length))",
        "let s = 'x'; for (;;) s = [s + s, s].join('-')",
    ] {
        let function = load(&format!("(s) => {{ if (s === 'bomb') {{ {bomb} }} return 'fine' }}")).await;
        let error = function.call("bomb", "").await.unwrap_err();
        // V8 refuses strings over 512 MiB with a RangeError before the heap is full.
        assert!(
            error.kind == ErrorKind::Memory || error.name.as_deref() == Some("RangeError"),
            "{error:?}"
        );
        assert_eq!(function.call("s", "").await.unwrap().body, "fine");
    }
}

#[tokio::test]
async fn awaiting_calls_overlap_up_to_the_concurrency_limit() {
    let source = "let open = 0, most = 0;
        export default async (msg) => {
            if (msg.text() === 'most') return most;
            most = Math.max(most, ++open);
            await new Promise((done) => setTimeout(done, 20));
            open--;
        }";
    for (concurrency, expected) in [(1, "1"), (4, "4")] {
        let limits = Limits {
            concurrency,
            instances: 1,
            ..Limits::default()
        };
        let function = Harness::new().unwrap().limits(limits).load(source).await.unwrap();
        let calls = (0..12).map(|_| function.call("s", ""));
        for result in futures::future::join_all(calls).await {
            result.unwrap();
        }
        assert_eq!(function.call("s", "most").await.unwrap().body, expected);
    }
}

#[tokio::test]
async fn a_full_queue_answers_overloaded() {
    let limits = Limits {
        queue_depth: 2,
        concurrency: 1,
        wall_time: Duration::from_millis(300),
        ..Limits::default()
    };
    let function = Harness::new()
        .unwrap()
        .limits(limits)
        .load("(s) => { if (s === 'spin') for (;;) {} }")
        .await
        .unwrap();
    let calls = (0..10).map(|_| function.call("spin", ""));
    let kinds: Vec<_> = futures::future::join_all(calls)
        .await
        .into_iter()
        .map(|call| call.unwrap_err().kind)
        .collect();
    assert!(
        kinds.iter().filter(|kind| **kind == ErrorKind::Overloaded).count() >= 7,
        "{kinds:?}"
    );
    assert!(kinds.contains(&ErrorKind::WallTimeout), "{kinds:?}");
    let told = function.events().into_iter().filter(|event| {
        matches!(
            event,
            EngineEvent::LimitHit(LimitHit {
                limit: Limit::QueueDepth,
                ..
            })
        )
    });
    assert_eq!(told.count(), 1, "once a second, not for each call");
}

#[tokio::test]
async fn replies_over_the_limit_are_refused() {
    let limits = Limits {
        reply_bytes: 1000,
        ..Limits::default()
    };
    let function = Harness::new()
        .unwrap()
        .limits(limits)
        .load("(s, p) => p")
        .await
        .unwrap();
    assert_eq!(function.call("s", vec![7; 1000]).await.unwrap().body, vec![7; 1000]);
    assert_eq!(
        function.call("s", vec![7; 1001]).await.unwrap_err().kind,
        ErrorKind::PayloadTooLarge
    );
}

#[tokio::test]
async fn nothing_of_the_host_is_on_the_global() {
    let source = "() => ['Deno', '__bootstrap', '__nex', '__infra', 'SharedArrayBuffer', 'Atomics', 'process']
        .filter((name) => name in globalThis)";
    assert_eq!(reply(source).await, "[]");
}

#[tokio::test]
async fn functions_do_not_share_globals() {
    let engine = Arc::new(nex_runtime::v8::V8Engine::new(nex_runtime::v8::V8Config::default()).unwrap());
    let harness = Harness::with_engine(engine);
    let source = "() => { globalThis.calls = (globalThis.calls ?? 0) + 1; return calls }";
    let (one, two) = (harness.load(source).await.unwrap(), harness.load(source).await.unwrap());
    assert_eq!(one.call("s", "").await.unwrap().body, "1");
    assert_eq!(one.call("s", "").await.unwrap().body, "2");
    assert_eq!(two.call("s", "").await.unwrap().body, "1");
}

#[tokio::test]
async fn background_work_and_its_errors_reach_the_log() {
    let source = "export default (msg, env, ctx) => {
        ctx.waitUntil(new Promise((done) => setTimeout(done, 5)).then(() => { console.log('after', { reply: 1 }) }));
        setTimeout(() => { throw new Error('in a timer') }, 1);
        Promise.reject(new Error('nobody caught this'));
        return 'at once';
    }";
    let function = load(source).await;
    assert_eq!(function.call("s", "").await.unwrap().body, "at once");
    for text in ["after { reply: 1 }", "in a timer", "nobody caught this"] {
        while !function.logs().iter().any(|line| line.text.contains(text)) {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(function.call("s", "").await.unwrap().body, "at once");
}

#[tokio::test]
async fn a_syntax_error_shows_the_line() {
    let text = refused("(s, p) => {\n    const x = 1 2;\n}").await.to_string();
    assert!(text.contains("\n    const x = 1 2;\n                ^\n"), "{text}");
}

#[tokio::test]
async fn background_code_that_does_not_end_is_terminated() {
    let source = "() => { setTimeout(() => { console.log('spinning'); for (;;) {} }, 20); return 'fine' }";
    let function = short(Duration::from_millis(100)).load(source).await.unwrap();
    assert_eq!(function.call("s", "").await.unwrap().body, "fine");
    while !function
        .events()
        .iter()
        .any(|event| matches!(event, EngineEvent::LimitHit(_)))
    {
        tokio::task::yield_now().await;
    }
    assert_eq!(function.call("s", "").await.unwrap().body, "fine");
}

#[tokio::test]
async fn what_wait_until_waits_for_ends_with_the_time_of_the_last_call() {
    let source = "export default (msg, env, ctx) => {
        setInterval(() => console.log('still here'), 10); ctx.waitUntil(new Promise(() => {})); return 'fine' }";
    let logs: Arc<dyn LogSink> = Arc::new(|_line| {});
    let held = Arc::downgrade(&logs);
    let harness = short(Duration::from_millis(200)).log_sink(logs);
    let function = harness.load(source).await.unwrap();
    assert_eq!(function.call("s", "").await.unwrap().body, "fine");
    drop((harness, function));
    let ended = async {
        while held.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(30), ended).await;
    assert!(in_time.is_ok(), "the function goes on after it was dropped");
}

#[tokio::test]
async fn no_more_instances_are_awake_than_may_be() {
    let harness = || {
        let config = V8Config {
            max_instances: 2,
            ..V8Config::default()
        };
        Harness::with_engine(Arc::new(V8Engine::new(config).unwrap()))
    };
    let source = "export default async (msg) => { \
                  if (msg.text() === 'work') await new Promise((done) => setTimeout(done, 3600_000)); return 'well' }";
    let full = harness();
    let (one, two) = (full.load(source).await.unwrap(), full.load(source).await.unwrap());
    {
        let mut at_work = Box::pin(futures::future::join(one.call("s", "work"), two.call("s", "work")));
        assert!(futures::poll!(&mut at_work).is_pending());
        // Both have been taken up when a call behind them is answered.
        assert_eq!(one.call("s", "").await.unwrap().body, "well");
        assert_eq!(two.call("s", "").await.unwrap().body, "well");
        let refused = full.load(source).await.unwrap_err();
        assert!(matches!(refused, LoadError::Overloaded(_)), "{refused:?}");
    }
    // Idle ones make room.
    let idle = harness();
    let functions = [idle.load(source).await.unwrap(), idle.load(source).await.unwrap()];
    let third = idle.load(source).await.unwrap();
    for function in functions.iter().chain([&third]) {
        assert_eq!(function.call("s", "").await.unwrap().body, "well");
    }
}

#[tokio::test]
async fn invocations_have_unique_ids_even_after_their_instance_was_replaced() {
    let source = "export default (msg, env, ctx) => { if (msg.text() === 'spin') for (;;) {} return ctx.id }";
    let function = short(Duration::from_millis(100)).load(source).await.unwrap();
    let mut ids = std::collections::HashSet::new();
    for _ in 0..3 {
        assert!(ids.insert(function.call("s", "").await.unwrap().body));
        assert!(ids.insert(function.call("s", "").await.unwrap().body));
        function.call("s", "spin").await.unwrap_err();
    }
}
