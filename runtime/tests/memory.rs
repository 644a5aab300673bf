//! Memory limits through the public interface: what a function that wants too much of something gets, that the process
//! holds no more than the limits say meanwhile, and that the function answers its next call.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::fs;
use std::sync::Arc;

use nex_runtime::engine::{EngineEvent, Limit, LimitHit, Limits};
use nex_runtime::harness::{Harness, HarnessFunction};
use nex_runtime::invocation::{ErrorKind, InvokeError};
use nex_runtime::v8::{V8Config, V8Engine};
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
        println!(
            "{what}: got {got}, peak {peak}, {:?}",
            hits(&function, Limit::BufferBytes)
        );
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
async fn explore() {
    let _turn = turn().await;
    let cases: Vec<(&str, String)> = vec![
        ("encoder", "const kept = []; const text = 'x'.repeat(1 << 20); const e = new TextEncoder(); for (;;) kept.push(e.encode(text))".into()),
        ("reserve big", "try { new ArrayBuffer(0, { maxByteLength: 2 ** 46 }); return 'got' } catch (e) { return String(e) }".into()),
        ("many empty memories", "const kept = []; try { for (;;) kept.push(new WebAssembly.Memory({ initial: 0 })) } catch (e) { return kept.length + String(e) }".into()),
        ("many rabs", "const kept = []; try { for (;;) kept.push(new ArrayBuffer(0, { maxByteLength: 4096 })) } catch (e) { return kept.length + String(e) }".into()),
        ("many garbage rabs", "for (let i = 0; i < 20000; i++) new ArrayBuffer(0, { maxByteLength: 4096 }); return 'ok'".into()),
        ("garbage buffers", "for (let i = 0; i < 2000; i++) new ArrayBuffer(1 << 20); return 'ok'".into()),
        ("split", "return 'x'.repeat(2**28).split('').length".into()),
        ("sort", "return Array.prototype.sort.call({length:2**53-1})".into()),
        ("big array", "return new Array(2**25).fill(0).length".into()),
        ("big array 2", "const a = []; a.length = 2**25; a.fill(1); return a.length".into()),
        ("push", "const a = []; for (;;) a.push(1)".into()),
        ("strings", "const a = []; for (let i = 0;; i++) a.push('x'.repeat(1000) + i)".into()),
        ("string doubling", "let s = 'x'; for (;;) { s += s; if (s.length > 1e8) s = s.slice(1) }".into()),
        ("flat strings", "const a=[]; for (;;) { const s = 'ab'.repeat(1<<20) + a.length; s.charCodeAt(1); JSON.parse('1'); a.push(s.split('a').join('c')) }".into()),
        ("maps", "const m = new Map(); for (let i = 0;; i++) m.set(i, i)".into()),
        ("objects", "const o = {}; for (let i = 0;; i++) o['k' + i] = {}".into()),
        ("spread", "const a = new Array(2**24).fill(1); return [...a, ...a, ...a, ...a].length".into()),
        ("concat", "let a = new Array(2**20).fill(1); for (;;) a = a.concat(a)".into()),
        ("Array.from", "return Array.from({length: 2**27}).length".into()),
        ("join", "return new Array(2**29).join('xxxx').length".into()),
        ("regexp", "return 'x'.repeat(2**27).replace(/x/g, 'yy').length".into()),
        ("match all", "return 'x'.repeat(2**27).match(/x/g).length".into()),
        ("json", "return JSON.stringify(new Array(2**24).fill('aaaa')).length".into()),
        ("json parse", "return JSON.parse('[' + '1,'.repeat(2**25) + '1]').length".into()),
        ("keys", "return Object.keys('x'.repeat(2**27)).length".into()),
        ("apply", "return Math.max.apply(null, new Array(2**23).fill(1))".into()),
        ("fromCharCode", "return String.fromCharCode(...new Array(2**22).fill(65)).length".into()),
        ("bigint", "return (2n ** (2n ** 29n)).toString().length".into()),
        ("bigint2", "let b = 1n; for (;;) b = b << 1000000n".into()),
        ("eval", "return eval('[' + '1,'.repeat(2**24) + ']').length".into()),
        ("new Function", "return new Function('return ' + '('.repeat(1e6) + ')'.repeat(1e6))()".into()),
        ("regexp big", "return new RegExp('(?:a{1000}){1000}{1000}').test('a')".into()),
        ("regexp alt", "return new RegExp('(' + 'a|'.repeat(1e6) + 'b)').test('c')".into()),
        ("promises", "const a = []; for (;;) a.push(new Promise(() => {}))".into()),
        ("flat", "return new Array(2**13).fill(new Array(2**13).fill(1)).flat().length".into()),
        ("typed from", "return Uint8Array.from({length: 2**28}).length".into()),
        ("wasm table", "return new WebAssembly.Table({ initial: 1e7, element: 'anyfunc' }).length".into()),
        ("wasm tables", "const a = []; for (;;) a.push(new WebAssembly.Table({ initial: 1e6, element: 'externref' }))".into()),
        ("symbols", "const a = []; for (let i = 0;; i++) a.push(Symbol('x' + i))".into()),
        ("closures", "const a = []; for (let i = 0;; i++) a.push(() => i)".into()),
        ("array of holes", "const a = []; a[2**32-2] = 1; return a.sort().length".into()),
        ("unicode normalize", "return '\\u0344'.repeat(2**26).normalize('NFD').length".into()),
        ("padStart", "const a = []; for (;;) a.push('a'.padStart(2**24) + a.length)".into()),
        ("intl", "const a = []; for (;;) a.push(new Intl.NumberFormat('de'))".into()),
        ("weakrefs", "const a = []; for (;;) a.push(new WeakRef({}))".into()),
        ("generators", "const a = []; function* g() { yield 1 } for (;;) { const x = g(); x.next(); a.push(x) }".into()),
        ("error stacks", "const a = []; for (;;) a.push(new Error('x'))".into()),
        ("structured", "return typeof structuredClone".into()),
    ];
    let only = std::env::var("ONLY").ok();
    for (what, body) in cases {
        if only.as_ref().is_some_and(|only| !what.contains(only.as_str())) {
            continue;
        }
        eprintln!("-- {what}");
        let source = format!("(subject, payload) => {{ if (payload.length === 0) return 'well'; {body} }}");
        let function = limited(128, 64).load(source).await.unwrap();
        let start = std::time::Instant::now();
        let (outcome, peak) = peak(&function, "boom").await;
        let outcome = match outcome {
            Ok(text) => text.chars().take(80).collect(),
            Err(e) => format!("{:?} {}", e.kind, e.message.chars().take(120).collect::<String>()),
        };
        let took = start.elapsed();
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        println!(
            "{what}: {outcome} | peak {} MiB, {took:?}, {:?}",
            peak >> 20,
            function.events()
        );
        let after = function.call("health", "").await;
        assert_eq!(after.unwrap().body, "well", "{what}");
    }
}
