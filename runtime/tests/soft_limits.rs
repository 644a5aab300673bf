//! Limits that refuse and let the function go on: pending host calls, timers, log lines, the size of replies. Each test
//! floods one of them and then makes an ordinary call.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use nex_runtime::engine::{EngineEvent, Limit, LimitHit, Limits};
use nex_runtime::harness::{Harness, HarnessFunction};
use nex_runtime::host_services::{HostError, HostRequest, HostResponse, HostResult, HostServices, Operation};
use nex_runtime::invocation::{ErrorKind, Trigger};
use nex_runtime::logs::{LogLevel, MAX_LOG_LINE};
use nex_runtime::v8::{V8Config, V8Engine};
use tokio::sync::Notify;

/// Host services that answer at once, except for the key `wait`, which is answered when the test says so.
#[derive(Default)]
struct Services {
    go: Arc<Notify>,
    begun: AtomicUsize,
    most_bytes: AtomicUsize,
}

impl HostServices for Services {
    fn call(&self, request: HostRequest) -> BoxFuture<'static, Result<HostResponse, HostError>> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.most_bytes.fetch_max(request.payload.len(), Ordering::SeqCst);
        let done = HostResponse::from(HostResult::Done);
        let wait = matches!(&request.operation, Operation::KvSet { key, .. } if key == "wait");
        let never = matches!(&request.operation, Operation::KvSet { key, .. } if key == "never");
        let go = Arc::clone(&self.go).notified_owned();
        async move {
            if wait {
                go.await;
            }
            if never {
                pending::<()>().await;
            }
            Ok(done)
        }
        .boxed()
    }
}

/// Calls look at what earlier ones left behind, so there is one instance.
fn alone(limits: Limits) -> Limits {
    Limits { instances: 1, ..limits }
}

async fn load(limits: Limits, source: &str) -> HarnessFunction {
    let limits = alone(limits);
    Harness::new()
        .unwrap()
        .limits(limits)
        .load(source.to_owned())
        .await
        .unwrap()
}

async fn load_with(services: &Arc<Services>, limits: Limits, source: &str) -> HarnessFunction {
    let services: Arc<dyn HostServices> = Arc::<Services>::clone(services);
    let harness = Harness::new().unwrap().services(services).limits(alone(limits));
    harness.load(source.to_owned()).await.unwrap()
}

async fn text(function: &HarnessFunction, payload: &str) -> String {
    let reply = function.call("s", payload.to_owned()).await.unwrap();
    String::from_utf8(reply.body.to_vec()).unwrap()
}

fn hits(function: &HarnessFunction, limit: Limit) -> Vec<LimitHit> {
    let hit = |event| match event {
        EngineEvent::LimitHit(hit) if hit.limit == limit => Some(hit),
        _ => None,
    };
    function.events().into_iter().filter_map(hit).collect()
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn host_calls_beyond_the_limit_are_refused_at_once() {
    let services = Arc::new(Services::default());
    let limits = Limits {
        host_calls: 7,
        heap_bytes: 1 << 30,
        cpu_time: Duration::from_secs(20),
        ..Limits::default()
    };
    let source = "let refused = [], accepted = 0;
        export default async (msg, env) => {
            if (msg.text() === 'refused') return [refused.length, ...new Set(refused)];
            const payload = new Uint8Array(1 << 20);
            const calls = [];
            for (let i = 0; i < 100_000; i++) {
                calls.push(env.kv().set('wait', payload).then(() => accepted++, (error) => {
                    refused.push(`${error.name} ${error.code} ${error.message}`);
                }));
            }
            await Promise.all(calls);
            return accepted;
        }";
    // The function keeps its hundred thousand promises and errors itself.
    let config = V8Config {
        heap_bytes: 1 << 30,
        ..V8Config::default()
    };
    let services_of_function: Arc<dyn HostServices> = Arc::<Services>::clone(&services);
    let function = Harness::with_engine(Arc::new(V8Engine::new(config).unwrap()))
        .services(services_of_function)
        .limits(alone(limits))
        .load(source)
        .await
        .unwrap();
    let flood = function.call("s", "flood");
    let meanwhile = async {
        // Other calls of the same instance go on, and know that all but seven were refused before any was answered.
        until(|| services.begun.load(Ordering::SeqCst) == 7).await;
        let refused = text(&function, "refused").await;
        assert!(
            refused.starts_with(r#"[99993,"HostServiceError LIMIT_EXCEEDED 7 host calls are pending"#),
            "{refused}"
        );
        services.go.notify_waiters();
    };
    let (reply, ()) = tokio::join!(flood, meanwhile);
    assert_eq!(reply.unwrap().body, "7");
    assert_eq!(services.begun.load(Ordering::SeqCst), 7);
    assert_eq!(
        hits(&function, Limit::HostCalls)[0],
        LimitHit {
            limit: Limit::HostCalls,
            allowed: 7,
            measured: 8
        }
    );
    // Their places are free again.
    let second = function.call("s", "flood");
    let meanwhile = async {
        until(|| services.begun.load(Ordering::SeqCst) == 14).await;
        services.go.notify_waiters();
    };
    let (reply, ()) = tokio::join!(second, meanwhile);
    assert_eq!(reply.unwrap().body, "14");
}

#[tokio::test]
async fn synchronous_host_calls_count_with_those_pending() {
    let services = Arc::new(Services::default());
    let limits = Limits {
        host_calls: 2,
        ..Limits::default()
    };
    // A module has the classic objects as well.
    let source = "export default async (msg, env) => {
            const set = () => { try { kv('b').set('now', ''); return 'set' } catch (error) { return error.code } };
            const seen = [set()];
            env.kv().set('wait', '');
            seen.push(set());
            env.kv().set('wait', '');
            seen.push(set());
            return seen;
        }";
    let function = load_with(&services, limits, source).await;
    assert_eq!(text(&function, "").await, r#"["set","set","LIMIT_EXCEEDED"]"#);
}

#[tokio::test]
async fn pending_payloads_are_bounded_together_and_not_copied_before() {
    let services = Arc::new(Services::default());
    let source = "export default async (msg, env) => {
            const codes = {};
            const count = (error) => { codes[error.code] = (codes[error.code] ?? 0) + 1 };
            for (let i = 0; i < 20; i++) env.kv().set('never', big).catch(count);
            env.kv().set('never', text).catch(count);
            await null;
            return codes;
        };
        const big = new Uint8Array(10 << 20);
        const text = 'x'.repeat(2 ** 29 - 24);";
    let function = load_with(&services, Limits::default(), source).await;
    // Six of ten MiB fit into 64 MiB; the string would be half a gigabyte.
    assert_eq!(text(&function, "").await, r#"{"LIMIT_EXCEEDED":15}"#);
    assert_eq!(services.most_bytes.load(Ordering::SeqCst), 10 << 20);
}

#[tokio::test]
async fn endless_texts_and_headers_are_refused_before_they_are_sent() {
    let services = Arc::new(Services::default());
    let source = "() => {
            const long = 'x'.repeat(2 ** 29 - 24);
            const endless = { *[Symbol.iterator]() { for (;;) yield ['a', 'b'] } };
            const attempts = [
                () => kv(long), () => kv('b').get(long), () => objectStore('b').put(long, ''), () => http.get(long),
                () => messaging.publish(long, ''), () => messaging.publish('s', '', { headers: { a: long } }),
                () => messaging.publish('s', '', { headers: [[long, 'a']] }),
                () => messaging.publish('s', '', { headers: endless }), () => new Reply('', { headers: endless }),
            ];
            return attempts.map((attempt) => { try { attempt() } catch (error) { return error.code } });
        }";
    let function = load_with(&services, Limits::default(), source).await;
    let codes: Vec<String> = serde_json::from_str(&text(&function, "").await).unwrap();
    assert_eq!(codes, ["INVALID_ARGUMENT"; 9]);
    assert_eq!(services.begun.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn timers_beyond_the_limit_throw_whatever_the_function_does_to_prototypes() {
    let limits = Limits {
        timers: 1_000,
        ..Limits::default()
    };
    let source = "for (const prototype of [Map.prototype, Set.prototype, Array.prototype, Object.prototype]) {
            for (const name of ['set', 'get', 'has', 'delete', 'size', 'add', 'push', 'length', 'call', 'apply', 'bind']) {
                try { Object.defineProperty(prototype, name, { value: () => undefined, configurable: true }) } catch {}
            }
        }
        let fired = 0;
        export default async (msg) => {
            let set = 0;
            try {
                for (; set < 1e6; set++) setTimeout(() => fired++, 5);
            } catch (error) {
                await new Promise((done) => {
                    const look = () => { try { setTimeout(() => done(), 6) } catch { queueMicrotask(look) } };
                    fired > 0 ? look() : done();
                });
                return `${set} ${error.name}: ${error.message}`;
            }
        }";
    let function = load(limits, source).await;
    let expected = "1000 RangeError: 1000 timers are pending already, which is the limit";
    assert_eq!(text(&function, "").await, expected);
    assert_eq!(
        hits(&function, Limit::Timers),
        [LimitHit {
            limit: Limit::Timers,
            allowed: 1_000,
            measured: 1_001
        }]
    );
}

#[tokio::test]
async fn timers_that_fire_or_are_cleared_make_room() {
    let limits = Limits {
        timers: 3,
        ..Limits::default()
    };
    let source = "export default async () => {
            const seen = [];
            // Cleared before, cleared twice, cleared inside its own callback, re-armed many times, and an interval.
            for (let i = 0; i < 100; i++) { const id = setTimeout(() => seen.push('never'), 1); clearTimeout(id); clearTimeout(id) }
            clearTimeout(); clearTimeout(-1); clearTimeout({}); clearInterval('x');
            await new Promise((done) => {
                let left = 50;
                const again = () => (--left === 0 ? done() : setTimeout(again, 0));
                setTimeout(again, 0);
            });
            await new Promise((done) => { const id = setTimeout(() => { clearTimeout(id); done() }, 0) });
            let ticks = 0;
            await new Promise((done) => { const id = setInterval(() => { if (++ticks === 5) { clearInterval(id); done() } }, 0) });
            const ids = [1, 2, 3].map(() => setTimeout(() => {}, 1e9));
            try { setTimeout(() => {}, 0) } catch (error) { seen.push(error.name) }
            ids.forEach(clearTimeout);
            setTimeout(() => {}, 0);
            return [ticks, ...seen];
        }";
    let function = load(limits, source).await;
    assert_eq!(text(&function, "").await, r#"[5,"RangeError"]"#);
}

#[tokio::test]
async fn delays_are_clamped_as_browsers_do() {
    // All but the first fire; a delay of more than 32 bits counts by its low ones.
    let source = "export default async () => {
            const fired = [];
            const delays = [2 ** 31 - 1, NaN, -1, Infinity, -Infinity, undefined, null, '3', 2 ** 32, 2 ** 31, 1e300, {}, [2]];
            delays.forEach((delay, index) => setTimeout(() => fired.push(index), delay));
            for (const bad of [1n, Symbol()]) {
                try { setTimeout(() => {}, bad) } catch (error) { fired.push(error.name) }
            }
            await new Promise((done) => setTimeout(done, 50));
            return fired.sort((a, b) => a - b).join();
        }";
    let function = load(Limits::default(), source).await;
    assert_eq!(
        text(&function, "").await,
        "TypeError,TypeError,1,2,3,4,5,6,7,8,9,10,11,12"
    );
}

#[tokio::test]
async fn a_million_log_lines_are_dropped_and_counted() {
    let limits = Limits {
        log_lines: 50,
        cpu_time: Duration::from_secs(20),
        ..Limits::default()
    };
    // Lines that are dropped are not formatted: the getters of the error would be called.
    let source = "let formatted = 0;
        const error = Object.defineProperty(new Error('x'), 'stack', { get() { formatted++; return 'line' } });
        (subject) => {
            if (subject === 'flood') for (let i = 0; i < 1e6; i++) console.log(error);
            return formatted;
        }";
    let function = load(limits, source).await;
    assert_eq!(function.call("flood", "").await.unwrap().body, "50");
    let lines: Vec<String> = function.logs().into_iter().map(|line| line.text).collect();
    assert_eq!(lines, vec!["line"; 50]);
    let hits = hits(&function, Limit::LogLines);
    assert_eq!((hits[0].allowed, hits[0].measured), (50, 51));
    assert!(hits.len() < 60, "{}", hits.len());
    assert_eq!(function.call("s", "").await.unwrap().body, "50");
}

#[tokio::test]
async fn what_was_dropped_is_said_when_the_instance_ends() {
    let logs = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let sink = Arc::clone(&logs);
    let limits = Limits {
        log_lines: 3,
        ..Limits::default()
    };
    let function = Harness::new()
        .unwrap()
        .limits(limits)
        .log_sink(Arc::new(move |line| sink.lock().push(line)))
        .load("() => { for (let i = 0; i < 10; i++) console.log(i) }")
        .await
        .unwrap();
    function.call("s", "").await.unwrap();
    assert_eq!(logs.lock().len(), 3);
    drop(function);
    until(|| logs.lock().len() == 4).await;
    let last = logs.lock()[3].clone();
    assert_eq!(last.text, "7 log lines dropped: the limit is 3 in 10 s");
    assert_eq!(last.level, LogLevel::Warn);
}

#[tokio::test]
async fn lines_of_100_mb_are_cut_without_being_put_together() {
    let limits = Limits {
        heap_bytes: 32 << 20,
        ..Limits::default()
    };
    let source = "const long = 'x\\u{1f600}'.repeat(25e6);
        () => {
            console.log(long);
            console.log('a', { long }, [long], new Error(long), Symbol(long));
            console.log(Object.fromEntries([['k'.repeat(1e5), 1]]));
            return long.length;
        }";
    let function = load(limits, source).await;
    assert_eq!(text(&function, "").await, "75000000");
    let logs = function.logs();
    assert_eq!(logs.len(), 3);
    for line in logs {
        let characters = line.text.chars().count();
        assert!((MAX_LOG_LINE..MAX_LOG_LINE + 20).contains(&characters), "{characters}");
        assert!(line.text.ends_with("\u{2026} (cut)"));
    }
}

#[tokio::test]
async fn long_lines_count_as_several() {
    let limits = Limits {
        log_lines: 100,
        ..Limits::default()
    };
    let source = "() => { for (let i = 0; i < 1000; i++) console.log('x'.repeat(9_999)) }";
    let function = load(limits, source).await;
    function.call("s", "").await.unwrap();
    assert_eq!(function.logs().len(), 10);
}

#[tokio::test]
async fn huge_and_hostile_values_are_logged_within_bounds() {
    let source = "const deep = {}; let at = deep; for (let i = 0; i < 1e5; i++) at = at.next = {};
        const wide = (levels) => levels === 0 ? 'leaf' : Array.from({ length: 100 }, () => wide(levels - 1));
        const values = [
            deep, wide(3), new Array(2 ** 32 - 1), new Uint8Array(1e7), new Set(Array.from({ length: 1e5 }, (_, i) => i)),
            Object.fromEntries(Array.from({ length: 1e5 }, (_, i) => [i, i])), Object.create(null), (2n ** 1_000_000n),
            new Proxy({}, { get() { for (;;); }, ownKeys() { for (;;); }, getPrototypeOf() { for (;;); } }),
            { get loop() { for (;;); }, set loop(x) {} }, Object.assign(() => {}, { a: 1 }), class A { static name = 7 },
            Object.create({ get constructor() { for (;;); } }), Symbol.iterator, new Date(NaN), /x/g, new WeakMap(),
            Object.setPrototypeOf([1], null), Object.setPrototypeOf(new Map([[1, 2]]), null), Object(1n), new Error('e'),
        ];
        (subject) => { values.forEach((value) => console.log(value)); console.log(values); return values.length }";
    let function = load(Limits::default(), source).await;
    let count: usize = text(&function, "").await.parse().unwrap();
    let logs = function.logs();
    assert_eq!(logs.len(), count + 1);
    assert!(logs.iter().all(|line| line.text.chars().count() < MAX_LOG_LINE + 20));
    assert_eq!(logs[0].text, "{ next: { next: { next: { next: [Object] } } } }");
    assert!(logs[2].text.ends_with("\u{2026} 4294967195 more ]"), "{}", logs[2].text);
}

#[tokio::test]
async fn terminals_are_safe_from_log_lines() {
    let function = load(
        Limits::default(),
        "() => console.log('\\x1b[2J\\x07a\\tb\\nc\\r\\u202e')",
    )
    .await;
    function.call("s", "").await.unwrap();
    assert_eq!(function.logs()[0].text, "\\x1b[2J\\x07a\tb\nc\\r\\u{202e}");
}

#[tokio::test]
async fn replies_too_large_are_refused_before_they_are_copied() {
    let limits = Limits {
        reply_bytes: 1_000,
        buffer_bytes: 1 << 30,
        ..Limits::default()
    };
    // Half a gigabyte as a string of few bytes of heap; a buffer beyond the heap limit; JSON; UTF-8 of three bytes each.
    for (result, bytes) in [
        ("'x'.repeat(2 ** 29 - 24)", (1 << 29) - 24),
        ("new Uint8Array(100_000_000)", 100_000_000),
        ("new ArrayBuffer(1_001)", 1_001),
        (
            "new Reply('x'.repeat(2 ** 29 - 24), { headers: { a: 'b' } })",
            (1 << 29) - 24,
        ),
        ("Promise.resolve('x'.repeat(1_001))", 1_001),
        ("({ then: (done) => setTimeout(done, 1, 'x'.repeat(1_001)) })", 1_001),
        ("['x'.repeat(999)]", 1_003),
        ("'\\u20ac'.repeat(334)", 1_002),
    ] {
        let source = format!("(subject) => subject === 'fine' ? 'fine' : {result}");
        let function = load(limits.clone(), &source).await;
        let error = function.call("s", "").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::PayloadTooLarge, "{result}");
        assert_eq!(error.message, format!("the reply has {bytes} bytes, the limit is 1000"));
        let expected = LimitHit {
            limit: Limit::ReplyBytes,
            allowed: 1_000,
            measured: bytes,
        };
        assert_eq!(hits(&function, Limit::ReplyBytes), [expected], "{result}");
        assert_eq!(function.call("fine", "").await.unwrap().body, "fine");
    }
}

#[tokio::test]
async fn a_streamed_reply_that_is_too_large_ends_the_stream() {
    let limits = Limits {
        reply_bytes: 10,
        ..Limits::default()
    };
    let source = "export default async function* () {
            try { yield 'one'; yield 'x'.repeat(11); yield 'three'; } finally { console.log('ended') }
        }";
    let function = load(limits, source).await;
    let replies = function.stream(Trigger::default()).await;
    assert_eq!(replies.len(), 2);
    assert_eq!(replies[0].as_ref().unwrap().body, "one");
    assert_eq!(replies[1].as_ref().unwrap_err().kind, ErrorKind::PayloadTooLarge);
    until(|| function.logs().iter().any(|line| line.text == "ended")).await;
}

#[tokio::test]
async fn a_flood_of_one_limit_makes_one_event_a_second() {
    let limits = Limits {
        timers: 1,
        cpu_time: Duration::from_secs(20),
        ..Limits::default()
    };
    let source = "() => { let refused = 0;
            for (let i = 0; i < 20_000; i++) try { setTimeout(() => {}, 1e6) } catch { refused++ }
            return refused;
        }";
    let function = load(limits, source).await;
    let began = std::time::Instant::now();
    assert_eq!(text(&function, "").await, "19999");
    let allowed = began.elapsed().as_secs() + 1;
    assert!((1..=allowed).contains(&(hits(&function, Limit::Timers).len() as u64)));
}

#[tokio::test]
async fn a_million_promises_that_nothing_settles_fail_and_are_gone() {
    let limits = Limits {
        cpu_time: Duration::from_secs(20),
        ..Limits::default()
    };
    let source = "export default (msg) => {
            if (msg.text() === 'fine') return 'fine';
            const all = []; for (let i = 0; i < 1e6; i++) all.push(new Promise(() => {}));
            return Promise.all(all);
        }";
    let function = load(limits, source).await;
    let error = function.call("s", "").await.unwrap_err();
    assert!(
        error.kind == ErrorKind::Memory || error.message.contains("never settle"),
        "{error:?}"
    );
    assert_eq!(text(&function, "fine").await, "fine");
}

#[tokio::test]
async fn a_flood_of_unhandled_rejections_fills_no_log() {
    let limits = Limits {
        log_lines: 20,
        cpu_time: Duration::from_secs(20),
        ..Limits::default()
    };
    let source = "let calls = 0; export default () => {
            calls++;
            if (calls === 1) for (let i = 0; i < 50_000; i++) Promise.reject(new Error('nobody'));
            return `${calls}`;
        }";
    let function = load(limits, source).await;
    assert_eq!(text(&function, "").await, "1");
    until(|| function.logs().len() == 20).await;
    // The same instance goes on.
    assert_eq!(text(&function, "").await, "2");
    assert!(
        function.logs()[0]
            .text
            .starts_with("Uncaught (in promise) Error: nobody\n    at ")
    );
    assert!(function.logs().len() <= 21);
}
