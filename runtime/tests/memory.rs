//! Memory limits through the public interface: what a function that wants too much of something gets, that the process
//! holds no more than the limits say meanwhile, and that the function answers its next call.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::fs;
use std::time::Duration;

use nex_runtime::engine::{EngineEvent, Limit, LimitHit, Limits};
use nex_runtime::harness::{Harness, HarnessFunction};
use nex_runtime::invocation::{ErrorKind, InvokeError};
use tokio::sync::{Mutex, MutexGuard};

const MIB: u64 = 1 << 20;

/// What one function may get the process to hold beyond its limits: a payload, V8's own structures, compiled code.
const SLACK: u64 = 48 * MIB;

/// Tests take turns: they measure the process.
async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// Kilobytes of a line of `/proc/self/status`, as bytes.
fn status(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Calls the function and returns its outcome and by how many bytes the process's resident memory was larger at its peak.
async fn peak(function: &HarnessFunction, payload: &str) -> (Result<String, InvokeError>, u64) {
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    let outcome = function.call("bomb", payload.to_owned()).await;
    let outcome = outcome.map(|reply| String::from_utf8(reply.body.to_vec()).unwrap());
    (outcome, status("VmHWM").saturating_sub(before))
}

fn limited(heap_mib: u64, buffer_mib: u64) -> Harness {
    Harness::new().unwrap().limits(Limits {
        heap_bytes: heap_mib * MIB,
        buffer_bytes: buffer_mib * MIB,
        cpu_time: std::time::Duration::from_secs(30),
        ..Limits::default()
    })
}

fn hits(function: &HarnessFunction, limit: Limit) -> Vec<LimitHit> {
    let hit = |event| match event {
        EngineEvent::LimitHit(hit) if hit.limit == limit => Some(hit),
        _ => None,
    };
    function.events().into_iter().filter_map(hit).collect()
}

/// `(module (memory (export "m") 1) (func (export "eat") (param i32) (result i32) ...))`: grows its memory page by page,
/// touching each, until that fails, or by as many pages as the parameter says; returns the pages it then has.
const EATER: &str = "new Uint8Array([\
     0,97,115,109,1,0,0,0,1,6,1,96,1,127,1,127,3,2,1,0,5,3,1,0,1,7,11,2,1,109,2,0,3,101,97,116,0,0,10,48,\
     1,46,0,2,64,3,64,32,0,69,13,1,32,0,65,1,107,33,0,65,1,64,0,65,127,70,13,1,63,0,65,1,107,65,16,116,65\
     ,1,54,2,0,12,0,11,11,63,0,11])";

/// `SharedArrayBuffer` is not on the global, but this way to it remains.
const SHARED: &str =
    "const Shared = new WebAssembly.Memory({ initial: 0, maximum: 1, shared: true }).buffer.constructor; ";

/// Bombs of memory outside of the heap. Each keeps all that it gets, and returns how many bytes it got in the end.
fn bombs() -> Vec<(&'static str, String)> {
    let keep = |make: &str| {
        format!(
            "const kept = []; let bytes = 0; \
             try {{ for (;;) {{ const view = new Uint8Array({make}); view.fill(1); kept.push(view); bytes += view.length }} }} \
             catch (error) {{ if (!(error instanceof RangeError)) throw error }} return bytes"
        )
    };
    vec![
        ("array buffers", keep("new ArrayBuffer(1 << 20)")),
        ("small arrays", keep("4096")),
        ("shared buffers", SHARED.to_owned() + &keep("new Shared(1 << 20)")),
        (
            "resizable buffers",
            keep("new ArrayBuffer(1 << 20, { maxByteLength: 1 << 24 })"),
        ),
        (
            "copies",
            "const b = new ArrayBuffer(1 << 20); ".to_owned() + &keep("b.slice()"),
        ),
        (
            "transfers",
            "const make = () => new ArrayBuffer(1 << 10).transfer(1 << 20); ".to_owned() + &keep("make()"),
        ),
        (
            "a growing buffer",
            "const b = new ArrayBuffer(0, { maxByteLength: 1 << 30 }); const view = new Uint8Array(b); \
             try { for (;;) { b.resize(b.byteLength + (1 << 20)); view.fill(1, b.byteLength - (1 << 20)) } } \
             catch (error) { if (!(error instanceof RangeError)) throw error } return b.byteLength"
                .to_owned(),
        ),
        (
            "a growing shared buffer",
            SHARED.to_owned()
                + "const b = new Shared(0, { maxByteLength: 1 << 30 }); const view = new Uint8Array(b); \
                   try { for (;;) { b.grow(b.byteLength + (1 << 20)); view.fill(1, b.byteLength - (1 << 20)) } } \
                   catch (error) { if (!(error instanceof RangeError)) throw error } return b.byteLength",
        ),
        ("memories", keep("new WebAssembly.Memory({ initial: 16 }).buffer")),
        (
            "a growing memory",
            "const memory = new WebAssembly.Memory({ initial: 0 }); \
             try { for (;;) { memory.grow(16); new Uint8Array(memory.buffer).fill(1) } } \
             catch (error) { if (!(error instanceof RangeError)) throw error } return memory.buffer.byteLength"
                .to_owned(),
        ),
        (
            "a growing shared memory",
            "const memory = new WebAssembly.Memory({ initial: 0, maximum: 65536, shared: true }); \
             try { for (;;) { memory.grow(16); new Uint8Array(memory.buffer).fill(1) } } \
             catch (error) { if (!(error instanceof RangeError)) throw error } return memory.buffer.byteLength"
                .to_owned(),
        ),
        (
            "the grow instruction",
            format!(
                "const {{ exports }} = new WebAssembly.Instance(new WebAssembly.Module({EATER})); \
                 return exports.eat(-1) * 65536"
            ),
        ),
        (
            "declared memories",
            format!(
                "const module = new WebAssembly.Module({EATER}); const kept = []; let pages = 0; \
                 try {{ for (;;) {{ const {{ exports }} = new WebAssembly.Instance(module); kept.push(exports); \
                 pages += exports.eat(15) }} }} \
                 catch (error) {{ if (!(error instanceof RangeError)) throw error }} return pages * 65536"
            ),
        ),
    ]
}

#[tokio::test]
async fn memory_outside_of_the_heap_ends_at_the_limit() {
    let _turn = turn().await;
    let limit = 64 * MIB;
    for (what, body) in bombs() {
        let source = format!("(subject, payload) => {{ if (payload.length === 0) return 'well'; {body} }}");
        let function = limited(128, 64).load(source).await.unwrap();
        let (outcome, peak) = peak(&function, "boom").await;
        let got: u64 = outcome
            .unwrap_or_else(|error| panic!("{what}: {error:?}"))
            .parse()
            .unwrap();
        assert!(got <= limit && got >= limit * 7 / 8, "{what}: got {got} bytes");
        assert!(peak <= limit + SLACK, "{what}: {peak} bytes were resident");
        let hits = hits(&function, Limit::BufferBytes);
        assert!(!hits.is_empty(), "{what}: nothing was reported");
        for hit in hits {
            assert!(hit.allowed == limit && hit.measured > limit, "{what}: {hit:?}");
        }
        let after = function.call("health", "").await;
        assert_eq!(after.unwrap().body, "well", "{what}");
    }
}

#[tokio::test]
async fn address_space_is_no_way_around_the_limit() {
    let _turn = turn().await;
    for (what, make) in [
        ("empty memories", "new WebAssembly.Memory({ initial: 0 })"),
        ("empty buffers", "new ArrayBuffer(0, { maxByteLength: 1 << 30 })"),
    ] {
        let source = format!(
            "() => {{ const kept = []; try {{ for (;;) kept.push({make}) }} \
             catch (error) {{ if (!(error instanceof RangeError)) throw error; return kept.length }} }}"
        );
        let function = limited(128, 64).load(source).await.unwrap();
        let (outcome, _) = peak(&function, "").await;
        let got: u64 = outcome.unwrap().parse().unwrap();
        // Each counts as a page of WebAssembly at least.
        assert!((900..=1024).contains(&got), "{what}: {got}");
        assert!(!hits(&function, Limit::BufferBytes).is_empty(), "{what}");
    }
    let source = "() => { try { new ArrayBuffer(0, { maxByteLength: 2 ** 46 }) } catch (error) { return error.name } }";
    let function = limited(128, 64).load(source).await.unwrap();
    assert_eq!(function.call("s", "").await.unwrap().body, "RangeError");
}

#[tokio::test]
async fn garbage_does_not_count() {
    let _turn = turn().await;
    let source = "() => { for (let i = 0; i < 1000; i++) { \
                    new ArrayBuffer(1 << 20); new ArrayBuffer(1 << 20, { maxByteLength: 1 << 22 }); \
                    new WebAssembly.Memory({ initial: 16 }) } return 'well' }";
    let function = limited(128, 64).load(source).await.unwrap();
    assert_eq!(function.call("s", "").await.unwrap().body, "well");
    assert_eq!(function.events(), []);
}

#[tokio::test]
async fn what_the_host_gives_counts_and_is_not_refused() {
    let _turn = turn().await;
    let source = "const kept = []; (subject, payload) => { kept.push(payload); return kept.length }";
    let function = limited(128, 8).load(source).await.unwrap();
    let payload = "x".repeat(1 << 20);
    let mut outcome = Ok(());
    for _ in 0..64 {
        if let Err(error) = function.call("s", payload.clone()).await {
            outcome = Err(error);
            break;
        }
    }
    assert_eq!(outcome.unwrap_err().kind, ErrorKind::Memory);
    let hit = *hits(&function, Limit::BufferBytes).last().unwrap();
    assert!(
        hit.allowed == 8 * MIB && (40 * MIB..=42 * MIB).contains(&hit.measured),
        "{hit:?}"
    );
    assert_eq!(function.call("s", "").await.unwrap().body, "1");
}

#[tokio::test]
async fn payloads_that_are_not_kept_do_not_count_for_ever() {
    let _turn = turn().await;
    for source in [
        "(subject, payload) => payload",
        "export default async (msg) => { await null; return msg.data }",
    ] {
        let function = limited(128, 16).load(source).await.unwrap();
        let payload = "x".repeat(256 << 10);
        for call in 0..1_000 {
            let reply = function.call("s", payload.clone()).await;
            let reply = reply.unwrap_or_else(|error| panic!("{source}: call {call}: {error}"));
            assert_eq!(reply.body.len(), payload.len());
        }
        assert!(hits(&function, Limit::BufferBytes).is_empty(), "{source}");
    }
}

#[tokio::test]
async fn buffers_that_v8_makes_by_the_way_end_the_function() {
    let _turn = turn().await;
    let source = "(subject, payload) => { if (payload.length === 0) return 'well'; \
                  const kept = []; const text = 'x'.repeat(1 << 20); const encoder = new TextEncoder(); \
                  for (;;) kept.push(encoder.encode(text)) }";
    let function = limited(128, 64).load(source).await.unwrap();
    let (outcome, peak) = peak(&function, "boom").await;
    let error = outcome.unwrap_err();
    assert!(
        matches!(error.kind, ErrorKind::Memory | ErrorKind::Exception),
        "{error:?}"
    );
    assert!(!hits(&function, Limit::BufferBytes).is_empty());
    assert!(peak <= 192 * MIB + SLACK, "{peak} bytes were resident");
    assert_eq!(function.call("health", "").await.unwrap().body, "well");
}

/// Fills the heap with small objects; the payload says how many megabytes it may, at least.
const HOARDER: &str = "(subject, payload) => { const mebibytes = Number(String.fromCharCode(...payload)); \
    const kept = []; for (let i = 0; i < mebibytes; i++) { const part = []; \
    for (let j = 0; j < 1024; j++) part.push(new Array(127).fill(j + 0.5)); kept.push(part) } return 'well' }";

#[tokio::test]
async fn each_function_has_its_own_heap_limit() {
    let _turn = turn().await;
    // Less than pooled isolates have, as much, and more.
    for limit in [16, 128, 224] {
        let function = limited(limit, 64).load(HOARDER).await.unwrap();
        let fits = function.call("s", (limit / 2).to_string()).await;
        assert_eq!(fits.unwrap().body, "well", "{limit} MiB");
        assert_eq!(function.events(), [], "{limit} MiB");
        let (outcome, peak) = peak(&function, "100000").await;
        assert_eq!(outcome.unwrap_err().kind, ErrorKind::Memory, "{limit} MiB");
        assert!(peak <= limit * MIB + SLACK, "{limit} MiB: {peak} bytes were resident");
        let hits = hits(&function, Limit::HeapBytes);
        assert_eq!(hits.len(), 1, "{limit} MiB: {hits:?}");
        assert_eq!(hits[0].allowed, limit * MIB);
        assert!(
            hits[0].measured > limit * MIB && hits[0].measured < (limit + 48) * MIB,
            "{hits:?}"
        );
        assert_eq!(function.call("s", "1").await.unwrap().body, "well", "{limit} MiB");
    }
}

/// What V8 aborts the process for when it is let. The first few ask for too much at once; the heap is not full.
const ABORTS: [&str; 10] = [
    "'x'.repeat(2 ** 28).split('')",
    "Array.prototype.sort.call({ length: 2 ** 53 - 1 })",
    "new Array(2 ** 25).fill(0)",
    "[...new Array(2 ** 24).fill(1), ...new Array(2 ** 24)]",
    "new Array(2 ** 13).fill(new Array(2 ** 13).fill(1)).flat()",
    "'x'.repeat(2 ** 27).match(/x/g)",
    "'\u{344}'.repeat(2 ** 26).normalize('NFD')",
    "Array.from({ length: 2 ** 27 })",
    "JSON.parse('[' + '1,'.repeat(2 ** 25) + '1]')",
    "Object.keys('x'.repeat(2 ** 27))",
];

#[tokio::test]
async fn where_v8_would_abort_only_the_function_ends() {
    let _turn = turn().await;
    let harness = limited(128, 64);
    let neighbour = harness.load("(subject, payload) => payload").await.unwrap();
    for expression in ABORTS {
        let source = format!("(subject, payload) => payload.length === 0 ? 'well' : ({expression}).length");
        let function = harness.load(source).await.unwrap();
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = status("VmRSS");
        let error = function.call("bomb", "boom").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Memory, "{expression}: {error:?}");
        // In the same process, neighbours and new instances of the same function are as good as ever.
        assert_eq!(
            neighbour.call("s", "neighbour").await.unwrap().body,
            "neighbour",
            "{expression}"
        );
        assert_eq!(function.call("s", "").await.unwrap().body, "well", "{expression}");
        // Callers are answered before the code has ended, which may still take memory until then.
        let ended = async {
            // Such code has idle priority: looking all the time would keep it from its end.
            while functions_run() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ended)
            .await
            .unwrap_or_else(|_| panic!("{expression} goes on"));
        let peak = status("VmHWM").saturating_sub(before);
        // Twice the limit is what a single allocation may get, and normalizing takes as much again from the C heap, of
        // which nobody can refuse it any.
        assert!(peak <= 6 * 128 * MIB, "{expression}: {peak} bytes were resident");
    }
}

/// Whether a thread runs that belongs to a function; they are named after it.
fn functions_run() -> bool {
    let runs = |task: &fs::DirEntry| {
        // "1234 (harness) R ..."; the thread may have ended meanwhile.
        let text = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        text.contains("(harness) R") || text.contains("(harness) D")
    };
    let mut tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks.any(|task| runs(&task.unwrap()))
}

#[tokio::test]
async fn recursion_ends_with_a_range_error_whatever_the_stack() {
    let _turn = turn().await;
    let bombs = [
        "const f = () => f() + 1; f()",
        "const f = (...a) => f(...a, 1, 2, 3, 4) + 1; f()",
        "let o = {}; for (let i = 0; i < 1e6; i++) o = { o }; JSON.stringify(o)",
        "JSON.parse('['.repeat(1e6) + ']'.repeat(1e6))",
        "const p = new Proxy({}, { get: (t, k, r) => r[k] }); p.x",
        "let p = {}; for (let i = 0; i < 1e5; i++) p = new Proxy(p, {}); p.x",
        "new RegExp('('.repeat(1e5) + ')'.repeat(1e5)).test('x')",
        "/^(?:(a|b)*)*$/.test('ab'.repeat(1e6))",
        "const o = { toString() { return `${o}` } }; `${o}`",
        "const o = { valueOf() { return o + 1 } }; +o",
        "[1, 2, 3].sort(function f() { return [1, 2].sort(f) })",
        "'a'.replace(/a/, function f() { return 'a'.replace(/a/, f) })",
        "class A { constructor() { new A() } } new A()",
        "const e = new Error(); Object.defineProperty(e, 'stack', { get() { return e.stack } }); e.stack",
        "eval('('.repeat(1e5) + ')'.repeat(1e5))",
        "eval('1' + '+1'.repeat(1e6))",
        "eval('-'.repeat(5e4).replace(/-/g, '- ') + '1')",
        "new Function('x'.repeat(10) + '=>'.repeat(1e5))",
        "structuredClone((() => { let o = {}; for (let i = 0; i < 1e5; i++) o = { o }; return o })())",
        "let f = () => 0; for (let i = 0; i < 1e5; i++) f = f.bind(null); f()",
        "let s = 'a'; for (let i = 0; i < 1e5; i++) s = i % 2 ? s + 'b' : 'b' + s; s.charCodeAt(0)",
        "let a = []; for (let i = 0; i < 1e5; i++) a = [a]; a.flat(Infinity)",
        "let a = []; for (let i = 0; i < 1e5; i++) a = [a]; String(a)",
        "const o = {}; o.__proto__ = new Proxy(o, {}); o.x",
        "async function f() { await f() } f()",
        "function* g() { yield* g() } [...g()]",
        "const f = () => { try { f() } finally { f() } }; f()",
    ];
    for stack_bytes in [
        Limits::MIN_STACK_BYTES,
        Limits::default().stack_bytes,
        Limits::MAX_STACK_BYTES,
    ] {
        let harness = Harness::new().unwrap().limits(Limits {
            stack_bytes,
            ..Limits::default()
        });
        let mut refused = 0;
        for bomb in bombs {
            let source = format!(
                "(subject, payload) => {{ if (payload.length === 0) return 'well'; \
                 try {{ {bomb}; return 'no error' }} catch (error) {{ return `${{error.name}}: ${{error.message}}` }} }}"
            );
            let function = harness.load(source).await.unwrap();
            match function.call("s", "boom").await {
                Ok(reply) => refused += usize::from(reply.body == "RangeError: Maximum call stack size exceeded"),
                // What goes on and on is ended by another limit.
                Err(error) => assert!(
                    matches!(
                        error.kind,
                        ErrorKind::CpuTimeout | ErrorKind::WallTimeout | ErrorKind::Memory
                    ),
                    "{stack_bytes}: {bomb}: {error:?}"
                ),
            }
            assert_eq!(
                function.call("s", "").await.unwrap().body,
                "well",
                "{stack_bytes}: {bomb}"
            );
        }
        assert!(refused >= 12, "{stack_bytes}: only {refused} ended for want of stack");
    }
}

#[tokio::test]
async fn a_larger_stack_takes_deeper_recursion() {
    let _turn = turn().await;
    let mut depths = Vec::new();
    for stack_bytes in [128 << 10, 984 << 10, 4 << 20, 16 << 20] {
        let harness = Harness::new().unwrap().limits(Limits {
            stack_bytes,
            ..Limits::default()
        });
        // Arguments make up most of a frame, however far V8 has optimised the function by then.
        let source = "() => { let depth = 0; const many = Array(100).fill(0); const f = () => { depth++; f(...many) }; \
                      try { f() } catch {} return depth }";
        let reply = harness.load(source).await.unwrap().call("s", "").await.unwrap();
        depths.push(String::from_utf8(reply.body.to_vec()).unwrap().parse::<u64>().unwrap());
    }
    assert!(depths[0] > 50, "{depths:?}");
    for pair in depths.windows(2) {
        assert!(pair[1] > pair[0] * 3, "{depths:?}");
    }
}
