//! The code cache through the engine's public interface: when it serves, and that nothing but speed shows it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::sync::Arc;
use std::time::Duration;

use nex_runtime::engine::{Limits, LoadError};
use nex_runtime::harness::{Harness, HarnessFunction};
use nex_runtime::v8::{CodeCacheStats, V8Config, V8Engine};

struct Cached {
    engine: V8Engine,
    harness: Harness,
}

/// One instance at a time, so that each start can be accounted for.
fn limits() -> Limits {
    Limits {
        instances: 1,
        ..Limits::default()
    }
}

impl Cached {
    fn new(code_cache_bytes: u64) -> Self {
        let config = V8Config {
            code_cache_bytes,
            ..V8Config::default()
        };
        let engine = V8Engine::new(config).unwrap();
        Self {
            harness: Harness::with_engine(Arc::new(engine.clone())).limits(limits()),
            engine,
        }
    }

    fn stats(&self) -> CodeCacheStats {
        self.engine.code_cache_stats()
    }

    async fn load(&self, name: &str, source: &str) -> HarnessFunction {
        self.harness.clone().name(name).load(source.to_owned()).await.unwrap()
    }

    /// Until code has been kept so that the condition holds.
    async fn until(&self, condition: impl Fn(&CodeCacheStats) -> bool) {
        while !condition(&self.stats()) {
            tokio::task::yield_now().await;
        }
    }
}

async fn call(function: &HarnessFunction, subject: &str) -> String {
    match function.call(subject, "payload").await {
        Ok(reply) => String::from_utf8(reply.body.to_vec()).unwrap(),
        Err(error) => format!("{:?} {} {:?}", error.kind, error.message, error.stack),
    }
}

#[tokio::test]
async fn a_source_that_was_called_starts_from_its_code() {
    for source in [
        "(s, p) => s + p.length",
        "export default (msg) => msg.subject + msg.data.length",
    ] {
        let cached = Cached::new(1 << 20);
        let first = cached.load("one", source).await;
        assert_eq!(call(&first, "a").await, "a7");
        cached.until(|stats| stats.entries == 1).await;
        let kept = cached.stats();
        assert_eq!((kept.hits, kept.misses, kept.rejected), (0, 1, 0), "{source}");
        // Another function with the same source.
        let second = cached.load("two", source).await;
        assert_eq!(call(&second, "b").await, "b7");
        let stats = cached.stats();
        assert_eq!(
            (stats.hits, stats.misses, stats.rejected, stats.entries),
            (1, 1, 0, 1),
            "{source}"
        );
        // Another source.
        cached.load("one", &format!("{source} ")).await;
        assert_eq!((cached.stats().hits, cached.stats().misses), (1, 2), "{source}");
    }
}

#[tokio::test]
async fn a_function_that_is_never_called_leaves_its_code_when_it_ends() {
    let cached = Cached::new(1 << 20);
    drop(cached.load("f", "() => 1").await);
    cached.until(|stats| stats.entries == 1).await;
}

#[tokio::test]
async fn a_hibernated_function_wakes_from_its_code() {
    for source in [
        "() => globalThis.n = (globalThis.n ?? 0) + 1",
        "let n = 0; export default () => ++n",
    ] {
        let cached = Cached::new(1 << 20);
        let limits = Limits {
            hibernate_after: Duration::from_millis(1),
            ..limits()
        };
        let function = cached.harness.clone().limits(limits).load(source).await.unwrap();
        assert_eq!(call(&function, "s").await, "1");
        // State that is lost shows that another instance answers.
        while call(&function, "s").await != "1" {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let stats = cached.stats();
        assert!(stats.hits >= 1 && stats.misses == 1 && stats.rejected == 0, "{stats:?}");
    }
}

#[tokio::test]
async fn a_lost_instance_is_replaced_from_code() {
    let cached = Cached::new(1 << 20);
    let limits = Limits {
        wall_time: Duration::from_millis(150),
        ..limits()
    };
    let source = "(s) => { if (s === 'spin') for (;;) {} return 'fine' }";
    let function = cached.harness.clone().limits(limits).load(source).await.unwrap();
    assert_eq!(call(&function, "s").await, "fine");
    cached.until(|stats| stats.entries == 1).await;
    function.call("spin", "").await.unwrap_err();
    assert_eq!(call(&function, "s").await, "fine");
    assert_eq!((cached.stats().hits, cached.stats().misses), (1, 1));
}

/// Sources, and the subjects they are called with, in each of which something depends on how and when code was compiled.
fn delicate() -> Vec<(String, &'static [&'static str])> {
    let literals: Vec<String> = (0..3000)
        .map(|n| format!("'k{n}': [{n}, '{n}', {{ n: {n} }}]"))
        .collect();
    let functions: Vec<String> = (0..500)
        .map(|n| format!("function f{n}(x) {{ return x + {n} }}"))
        .collect();
    let mut sources: Vec<(String, &'static [&'static str])> = [
        // Functions that are compiled in the first instance, and such that are not.
        ("const a = () => 'a', b = () => 'b', c = () => (() => 'c')(); (s) => ({ a, b, c })[s]()", &["a", "b", "c", "a"][..]),
        ("(s) => { const f = eval(`(x) => x + '${s}'`); return f('e') + new Function('y', 'return y + 1')(2) }", &["a"]),
        // Their text.
        ("/* head */ function f ( a,b ) { /* grüße 🎉 */ return f.toString() } f", &["a"]),
        ("export default function (msg) { return String(g) + this }\nfunction g() { return 'ÿ' }", &["a"]),
        ("class A { #p = 1; static s = A.name; m() { return this.#p } get [`x${1}`]() { return 2 } }; () => A.toString() + A.s + new A().x1", &["a"]),
        // Where errors are.
        ("\n\n  (s) => {\n    if (s === 'b') null.x;\n    throw new RangeError(s);\n  }", &["a", "b"]),
        ("const deep = (n) => n ? deep(n - 1) : new Error('é').stack;\nexport default () => deep(4)", &["a"]),
        ("export default async (msg) => {\n  await null;\n  function lazy() { undefined_name }\n  lazy()\n}", &["a", "a"]),
        // Private names, accessors, static blocks, inheritance.
        ("class B { static #n = 0; static { B.#n = 5 } #x; constructor(x) { this.#x = x } static is(o) { return #x in o } \
          get v() { return this.#x + B.#n } static next() { return ++B.#n } } \
          class C extends B { constructor() { super(10) } get v() { return super.v * 2 } } \
          (s) => [new C().v, B.is(new C()), B.is({}), B.next()]", &["a", "b"]),
        // Functions that pause.
        ("function* g() { const x = yield 1; try { yield x * 2 } finally { yield 'end' } } \
          (s) => { const i = g(); return [i.next(), i.next(4), i.return(9), i.next()] }", &["a", "b"]),
        ("export default async (msg) => { async function* g() { for (const x of [1, 2]) { await null; yield x } } \
          const all = []; for await (const x of g()) all.push(x); return all }", &["a"]),
        // Top-level await, import.meta, default exports of all kinds, bindings that live.
        ("const x = await new Promise((done) => setTimeout(done, 2, 'late')); export default (msg) => x + msg.subject", &["a"]),
        ("export default () => [import.meta.url, import.meta.main, import.meta.filename, import.meta.dirname]", &["a"]),
        ("export let n = 0; export default { message() { n += 1; return [n, this === undefined] } }", &["a", "b"]),
        ("export default async () => { try { await import('./x.js') } catch (e) { return e.message } }", &["a"]),
        // Values that are made once for a place in the source.
        ("const tag = (s) => s; const f = () => tag`x${1}y`; () => [f() === f(), f().raw]", &["a", "b"]),
        ("const r = () => /a(?<n>b+)/giu; () => [r() === r(), r().exec('xABb')?.groups.n, [1, [2, { a: 1 }]], 12345678901234567890n + 1n]", &["a"]),
        ("'use strict'; (function () { return String(this) })", &["a"]),
        ("(function () { return String(this === globalThis) + arguments.length + typeof arguments.callee })", &["a"]),
        ("label: { var v = 1; break label } let t = typeof later; function later() {} () => [v, t, typeof label2]", &["a"]),
        // Asm.js, which V8 may compile as WebAssembly and then keeps no code of.
        ("function M(stdlib) { 'use asm'; function f(x) { x = x | 0; return (x + 1) | 0 } return { f: f } } () => M(globalThis).f(41)", &["a"]),
        // Names that the source gives itself.
        ("(s) => { try { null.x } catch (e) { return e.stack } }\n//# sourceURL=file:///own.js", &["a"]),
    ]
    .into_iter()
    .map(|(source, subjects)| (source.to_owned(), subjects))
    .collect();
    sources.push((
        format!(
            "const t = {{ {} }}; (s) => [Object.keys(t).length, t[s], (t[s][0] = 'changed')]",
            literals.join(", ")
        ),
        &["k7", "k2999", "k7"],
    ));
    sources.push((
        format!("{}\nexport default (msg) => eval(msg.subject)(1)", functions.join("\n")),
        &["f0", "f499", "f499"],
    ));
    sources
}

#[tokio::test]
async fn nothing_but_speed_shows_that_code_was_cached() {
    let (cached, bare) = (Cached::new(64 << 20), Cached::new(0));
    for (source, subjects) in delicate() {
        let mut expected = Vec::new();
        let function = bare.load("f", &source).await;
        for subject in subjects {
            expected.push(call(&function, subject).await);
        }
        for round in 0..3 {
            let before = cached.stats();
            let function = cached.load("f", &source).await;
            let start = cached.stats();
            assert_eq!(start.rejected, 0, "{source}");
            assert_eq!(start.hits - before.hits, u64::from(round > 0), "{round}: {source}");
            for (subject, expected) in subjects.iter().zip(&expected) {
                assert_eq!(&call(&function, subject).await, expected, "{round}: {source}");
            }
            drop(function);
            cached.until(|stats| stats.entries > before.entries || round > 0).await;
        }
    }
}

#[tokio::test]
async fn errors_from_cached_code_name_the_function_they_are_in() {
    for source in [
        "const name = new Error().stack.includes('bad');\n  if (name) throw new Error('top');\n() => 1",
        "export default () => 1\nconst name = new Error().stack.includes('bad');\n  if (name) throw new Error('top');",
        "export default () => 1; await null;\nconst name = new Error().stack.includes('bad');\n  if (name) throw new Error('top');",
    ] {
        let cached = Cached::new(1 << 20);
        let function = cached.load("good", source).await;
        assert_eq!(call(&function, "s").await, "1");
        cached.until(|stats| stats.entries == 1).await;
        let error = cached.harness.clone().name("bad").load(source).await.unwrap_err();
        let LoadError::Threw(text) = &error else {
            panic!("{error:?}")
        };
        let mark = "\n    if (name) throw new Error('top');\n                    ^\n";
        assert!(text.contains(mark) && text.contains("file:///bad.js:"), "{text}");
        assert_eq!(cached.stats().hits, 1);
    }
}

/// A function that has 50 others in it and calls them only when asked to, behind as many bytes of comment.
fn of_parts(comment: usize) -> String {
    let parts: Vec<String> = (0..50)
        .map(|n| format!("function part{n}(x) {{ let y = x; for (const z of [1, 2, 3]) y = y * z + {n}; return y }}"))
        .collect();
    let all: Vec<String> = (0..50).map(|n| format!("part{n}(1)")).collect();
    format!(
        "/*{}*/ {}; (s) => s === 'all' ? [{}].length : 0",
        " ".repeat(comment),
        parts.join("\n"),
        all.join(", ")
    )
}

/// Longer than what is compiled whole.
const LARGE: usize = 20_000;

#[tokio::test]
async fn code_gets_better_as_more_of_it_runs() {
    let cached = Cached::new(1 << 20);
    let function = cached.load("f", &of_parts(LARGE)).await;
    call(&function, "little").await;
    cached.until(|stats| stats.entries == 1).await;
    let little = cached.stats().bytes;
    while cached.stats().bytes < little + 5000 {
        assert_eq!(call(&function, "all").await, "50");
    }
    assert_eq!(cached.stats().entries, 1);
}

#[tokio::test]
async fn code_of_a_small_function_is_whole_at_once() {
    let bytes_of = async |source: String| {
        let cached = Cached::new(1 << 20);
        let function = cached.load("f", &source).await;
        call(&function, "little").await;
        cached.until(|stats| stats.entries == 1).await;
        cached.stats().bytes
    };
    let (whole, part) = (bytes_of(of_parts(0)).await, bytes_of(of_parts(LARGE)).await);
    assert!(whole > part + 5000, "{whole} bytes and {part}");
}

#[tokio::test]
async fn the_cache_keeps_to_its_size() {
    let capacity = 40_000;
    let cached = Cached::new(capacity);
    let source = |n: u32| format!("(s) => {{ const n = {n}; return [s, n, 'some text'].map((x) => x + 1).join('-') }}");
    for n in 0..40 {
        let hits = cached.stats().hits;
        while cached.stats().hits == hits {
            let function = cached.load("f", &source(n)).await;
            assert_eq!(call(&function, "s").await, format!("s1-{}-some text1", n + 1));
        }
        assert!(cached.stats().bytes as u64 <= capacity);
    }
    let full = cached.stats();
    assert!(full.entries > 3 && full.entries < 40, "{full:?}");
    cached.load("f", &source(39)).await;
    assert_eq!(cached.stats().hits, full.hits + 1, "the latest is there");
    cached.load("f", &source(0)).await;
    assert_eq!(cached.stats().hits, full.hits + 1, "the oldest is gone");
}

#[tokio::test]
async fn size_zero_switches_it_off() {
    let cached = Cached::new(0);
    for _ in 0..2 {
        let function = cached.load("f", "() => 'fine'").await;
        for _ in 0..5 {
            assert_eq!(call(&function, "s").await, "fine");
        }
    }
    assert_eq!(cached.stats(), CodeCacheStats::default());
}
