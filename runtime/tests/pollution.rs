//! A function may replace whatever it can reach. The host's JavaScript must go on working as if it had not, and must
//! give away nothing of its own: the host calls and replies of a function that patches prototypes are those of one that
//! does not, in both forms and over all host services.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use nex_runtime::engine::{EngineEvent, Limits};
use nex_runtime::harness::Harness;
use nex_runtime::host_services::{
    HostError, HostErrorCode, HostRequest, HostResponse, HostResult, HostServices, MessageInfo, ObjectInfo, Operation,
};
use nex_runtime::invocation::Trigger;
use parking_lot::Mutex;

/// Answers every operation in a fixed way and writes down what it was asked.
#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

impl HostServices for Recorder {
    fn call(&self, request: HostRequest) -> BoxFuture<'static, Result<HostResponse, HostError>> {
        self.0
            .lock()
            .push(format!("{:?} {:?}", request.operation, request.payload));
        let (result, payload) = match request.operation {
            Operation::KvGet { key, .. } if key == "missing" => {
                return std::future::ready(Err(HostError::new(HostErrorCode::NotFound, "no such key"))).boxed();
            }
            Operation::KvGet { .. } | Operation::ObjectGet { .. } => (HostResult::Value, "value"),
            Operation::KvSet { .. } => (HostResult::Revision(1), ""),
            Operation::KvKeys { .. } => (HostResult::Keys(vec!["a".into(), "b".into()]), ""),
            Operation::ObjectPut { .. } => (HostResult::Object(ObjectInfo::default()), ""),
            Operation::ObjectList { .. } => (HostResult::Objects(vec![ObjectInfo::default(); 2]), ""),
            Operation::Request { .. } => (HostResult::Messages(vec![message(3)]), "one"),
            Operation::RequestMany { .. } => (HostResult::Messages(vec![message(3), message(3)]), "onetwo"),
            Operation::Http { .. } => (
                HostResult::Http {
                    status: 200,
                    headers: vec![("content-type".into(), "a".into()), ("content-type".into(), "b".into())],
                },
                "body",
            ),
            Operation::KvDelete { .. } | Operation::ObjectDelete { .. } | Operation::Publish { .. } => {
                (HostResult::Done, "")
            }
        };
        let payload = payload.into();
        // Not ready at once: what comes later takes another way back into the isolate.
        async move {
            let mut waited = false;
            poll_fn(|cx| {
                cx.waker().wake_by_ref();
                if std::mem::replace(&mut waited, true) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
            Ok(HostResponse { result, payload })
        }
        .boxed()
    }
}

fn message(len: u32) -> MessageInfo {
    MessageInfo {
        subject: "s".into(),
        headers: vec![("H".into(), "v".into())],
        len,
    }
}

/// Set up before the pollution: functions that it cannot change, and traps for what the host might give away.
const KEEP: &str = "
    const keep = {
        apply: Reflect.apply, define: Object.defineProperty, keys: Object.keys, text: Function.prototype.toString,
        index: String.prototype.indexOf, stack: Object.getOwnPropertyDescriptor,
    };
    const leaks = { __proto__: null, count: 0, first: undefined };
    const look = (value) => {
        if (typeof value !== 'function' && (typeof value !== 'object' || value === null)) return;
        const source = typeof value === 'function' ? keep.apply(keep.text, value, []) : '';
        const host = keep.apply(keep.index, source, ['op_']) >= 0 || 'op_nex_log' in value || 'primordials' in value;
        if (host && leaks.count++ === 0) leaks.first = source || 'an object of the host';
    };
    const trap = (object, name) => {
        const own = keep.stack(object, name);
        if (own === undefined || !own.configurable || typeof own.value !== 'function') return;
        const original = own.value;
        keep.define(object, name, { __proto__: null, configurable: true, writable: true, enumerable: false,
            value: function (...args) {
                look(this);
                for (let i = 0; i < args.length; i++) look(args[i]);
                for (let f = 0; f < args.length; f++) if (typeof args[f] === 'function') { try { look(args[f].caller) } catch {} }
                return keep.apply(original, this, args);
            } });
    };
    const kill = (object, name) => {
        const own = keep.stack(object, name);
        if (own === undefined || own.configurable) {
            keep.define(object, name, { __proto__: null, configurable: true, writable: true, value() { throw new Error(`killed ${typeof name === 'symbol' ? 'symbol' : name}`) } });
        }
    };
    const names = (object) => Object.getOwnPropertyNames(object);
";

/// The ways to pollute, each with a name.
const POLLUTIONS: &[(&str, &str)] = &[
    (
        "methods that throw",
        "for (const p of [Array.prototype, Map.prototype, Set.prototype, WeakMap.prototype, RegExp.prototype, String.prototype,
            Number.prototype, Symbol.prototype, Date.prototype, Object.getPrototypeOf(Uint8Array.prototype), Uint8Array.prototype,
            ArrayBuffer.prototype, DataView.prototype, JSON, Reflect, Math]) {
            const all = names(p);
            for (let i = 0; i < all.length; i++) if (all[i] !== 'constructor') try { kill(p, all[i]) } catch {}
        }",
    ),
    (
        "functions' methods that throw",
        "for (const name of ['call', 'apply', 'bind', 'toString']) kill(Function.prototype, name);
        for (const name of ['keys', 'entries', 'assign', 'freeze', 'defineProperty', 'getPrototypeOf', 'create']) kill(Object, name);
        for (const name of ['toString', 'valueOf', 'hasOwnProperty']) kill(Object.prototype, name);
        kill(Array, 'isArray'); kill(Array, 'from'); kill(ArrayBuffer, 'isView'); kill(Number, 'isInteger');",
    ),
    (
        "functions' methods that spy",
        "for (const p of [Function.prototype, Object, Reflect, Array.prototype, Map.prototype, Set.prototype, RegExp.prototype,
            String.prototype, JSON, Promise]) {
            const all = names(p);
            for (let i = 0; i < all.length; i++) if (all[i] !== 'constructor' && all[i] !== 'toString') trap(p, all[i]);
        }",
    ),
    (
        "iterators",
        "for (const p of [Array.prototype, Map.prototype, Set.prototype, String.prototype]) kill(Object.getPrototypeOf(new p.constructor()[Symbol.iterator]()), 'next');
        kill(Array.prototype, Symbol.iterator); kill(Map.prototype, Symbol.iterator); kill(Set.prototype, Symbol.iterator); kill(String.prototype, Symbol.iterator);",
    ),
    (
        "promises that are not asked",
        "const then = Promise.prototype.then;
        keep.define(Promise.prototype, 'then', { __proto__: null, configurable: true, value: function (...args) {
            for (let i = 0; i < args.length; i++) look(args[i]);
            return keep.apply(then, this, args);
        } });
        for (const name of ['catch', 'finally']) kill(Promise.prototype, name);
        for (const name of ['resolve', 'reject', 'all', 'race', 'withResolvers', 'try']) kill(Promise, name);",
    ),
    (
        "species and constructors",
        "class Evil { constructor(executor) { if (typeof executor === 'function') look(executor); throw new Error('species') } }
        for (const c of [Array, Map, Set, RegExp, ArrayBuffer, Object.getPrototypeOf(Uint8Array)])
            keep.define(c, Symbol.species, { __proto__: null, configurable: true, get: () => Evil });
        for (const p of [Array.prototype, Map.prototype, RegExp.prototype, Uint8Array.prototype, Error.prototype])
            keep.define(p, 'constructor', { __proto__: null, configurable: true, value: Evil });",
    ),
    (
        "getters and setters on Object.prototype",
        "const bad = (name) => keep.define(Object.prototype, name, { __proto__: null, configurable: true,
            get() { look(this); return undefined }, set(value) { look(this); look(value) } });
        for (const name of ['bucket', 'key', 'headers', 'timeoutMs', 'maxReplies', 'code', 'resolve', 'reject', 'convert',
            'error', 'value', 'done', 'enumerable', 'configurable', 'writable', 'body', 'status', 'subject', 'reply', 'data',
            'description', 'text', '0', '1', '2', 'length', 'name', 'kvGet', 'stack', 'cause', 'message'])
            bad(name);",
    ),
    (
        "values on Object.prototype",
        "for (const [name, value] of [['get', () => 1], ['set', () => 1], ['value', 1], ['enumerable', true], ['headers', { X: 'y' }],
            ['timeout', 1], ['max', 1], ['bucket', 'other'], ['code', 'PWNED'], ['then', undefined], ['toJSON', undefined],
            ['body', 'x'], ['done', true], ['1', 'one'], ['publish', {}]])
            if (value !== undefined) keep.define(Object.prototype, name, { __proto__: null, configurable: true, writable: true, value });
        for (const name of ['get', 'set']) delete Object.prototype[name];",
    ),
    (
        "descriptors",
        "Object.prototype.get = () => 'got'; ",
    ),
    (
        "stack traces",
        "Error.prepareStackTrace = (error, sites) => { look(sites); for (const site of sites) { look(site.getThis()); look(site.getFunction()) } return 'prepared' };
        Error.stackTraceLimit = Infinity; kill(Error, 'captureStackTrace');
        keep.define(Error.prototype, 'name', { __proto__: null, configurable: true, get() { look(this); throw new Error('name') } });",
    ),
    (
        "globals",
        "for (const name of ['Promise', 'Map', 'Uint8Array', 'Error', 'TypeError', 'RangeError', 'Object', 'Array', 'JSON', 'String',
            'console', 'AbortController', 'Symbol', 'queueMicrotask', 'Reflect'])
            keep.define(globalThis, name, { __proto__: null, configurable: true, get() { throw new Error(`killed global ${name}`) } });",
    ),
];

/// Everything a function can ask for, with nothing but operators of its own.
const CLASSIC: &str = "
    const h = hostServices;
    const show = (value) => typeof value === 'object' && value !== null ? 'object' : `${value}`;
    function exercise() {
        let out = '';
        const note = (value) => { out += show(value) + ';' };
        h.kv.set('k', 'v'); note(h.kv.get('k')[4]); note(h.kv.keys()[1]); h.kv.delete('k');
        try { h.kv.get('missing') } catch (error) { note(error.code); note(error.message) }
        try { h.kv.get() } catch (error) { note(error.code); note(error.message) }
        note(h.objectStore.put('o', new U8(3)).size); note(h.objectStore.get('o')[0]); note(h.objectStore.list()[1].size);
        h.objectStore.del('o');
        h.messaging.publish('a.b', 'p', { headers: { A: 'b', C: ['d', 'e'] } });
        note(h.messaging.request('a.b', 'p', { headers: [['A', 'b']], timeout: 5 })[0]);
        note(h.messaging.requestMany('a.b', 'p', { headers: null, timeout: null, max: 2 })[1][0]);
        const response = h.http.post('http://x/', 'p', { headers: { A: 'b' }, timeout: 5 });
        note(response.status); note(response.headers['Content-Type']); note(response.response); note(response.body[0]);
        note(h.http.get('http://x/', { headers: {}, timeout: 7 }).status);
        log('logged', 1, { a: [1] });
        return out;
    }
    const U8 = Uint8Array, log = console.log, R = Reply;
";

const MODULE: &str = "
    const U8 = Uint8Array, log = console.log, R = Reply, timeout = setTimeout, P = Promise;
    const show = (value) => typeof value === 'object' && value !== null ? 'object' : `${value}`;
    async function exercise(msg, env, ctx) {
        let out = '';
        const note = (value) => { out += show(value) + ';' };
        const kv = env.kv(), objects = env.objects('b');
        await kv.set('k', 'v'); note((await kv.get('k'))[4]); note((await kv.keys())[1]); await kv.delete('k');
        try { await kv.get('missing') } catch (error) { note(error.code); note(error.message) }
        try { await kv.get() } catch (error) { note(error.code); note(error.message) }
        note((await objects.put('o', new U8(3))).size); note((await objects.get('o'))[0]); note((await objects.list())[1].size);
        await objects.del('o');
        await env.nats.publish('a.b', 'p', { headers: { A: 'b', C: ['d', 'e'] } });
        const answer = await env.nats.request('a.b', 'p', { headers: [['A', 'b']], timeout: 5 });
        note(answer.text()); note(answer.headers.get('H')); note(answer.subject);
        for await (const each of env.nats.requestMany('a.b', 'p', { headers: null, timeout: null, max: 2 })) note(each.text());
        const response = await env.http.post('http://x/', 'p', { headers: { A: 'b' }, timeout: 5 });
        note(response.status); note(response.headers['Content-Type']); note(response.response); note(response.body[0]);
        note((await env.http.get('http://x/', { headers: {}, timeout: 7 })).status);
        note(msg.subject); note(msg.text()); note(msg.headers.get('T')); note(msg.headers.keys()[0]); note(msg.headers.has('N'));
        note(env.vars.V); note(ctx.signal.aborted); note(typeof ctx.id);
        await new P((done) => timeout(done, 1));
        log('logged', 1, { a: [1] });
        return out;
    }
";

/// What a run leaves behind for others to see.
#[derive(Debug, PartialEq)]
struct Transcript {
    replies: Vec<String>,
    host_calls: Vec<String>,
    logs: Vec<String>,
}

async fn run(name: &str, source: String) -> Transcript {
    let recorder = Arc::new(Recorder::default());
    let services: Arc<dyn HostServices> = Arc::<Recorder>::clone(&recorder);
    let function = Harness::new()
        .unwrap()
        .services(services)
        .vars([("V".to_owned(), "var".to_owned())])
        .limits(Limits {
            wall_time: Duration::from_secs(5),
            ..Limits::default()
        })
        .load(source)
        .await
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut replies = Vec::new();
    // Host calls and their results; a reply with headers; what the traps caught.
    for subject in ["exercise", "reply", "leaks"] {
        let trigger = Trigger {
            subject: subject.into(),
            headers: vec![("T".into(), "trigger".into())],
            payload: "payload".into(),
            ..Trigger::default()
        };
        replies.push(match function.trigger(trigger).await {
            Ok(reply) => format!("{:?} {:?}", reply.headers, reply.body),
            Err(error) => format!("{error:?}"),
        });
    }
    assert!(
        !function
            .events()
            .iter()
            .any(|event| matches!(event, EngineEvent::Condemned { .. })),
        "{name}: {replies:?}"
    );
    Transcript {
        replies,
        host_calls: recorder.0.lock().clone(),
        logs: function.logs().into_iter().map(|line| line.text).collect(),
    }
}

fn classic(pollution: &str) -> String {
    format!(
        "{KEEP} {CLASSIC} {{ {pollution} }}
        (subject) => subject === 'exercise' ? exercise()
            : subject === 'reply' ? new R('body', {{ headers: {{ A: 'b' }} }})
            : `${{leaks.count}} ${{leaks.first}}`"
    )
}

fn module(pollution: &str) -> String {
    format!(
        "{KEEP} {MODULE} {{ {pollution} }}
        export default async (msg, env, ctx) => msg.subject === 'exercise' ? await exercise(msg, env, ctx)
            : msg.subject === 'reply' ? new R('body', {{ headers: {{ A: 'b' }} }})
            : `${{leaks.count}} ${{leaks.first}}`"
    )
}

async fn compare(name: &str, form: fn(&str) -> String, pollution: &str, clean: &Transcript) {
    let polluted = run(name, form(pollution)).await;
    assert_eq!(&polluted, clean, "{name}");
}

#[tokio::test]
async fn classic_functions_that_pollute_see_the_same_host() {
    let clean = run("clean", classic("")).await;
    assert_eq!(clean.host_calls.len(), 14, "{clean:#?}");
    assert_eq!(clean.replies[2], r#"[] b"0 undefined""#);
    for (name, pollution) in POLLUTIONS {
        compare(name, classic, pollution, &clean).await;
    }
}

#[tokio::test]
async fn modules_that_pollute_see_the_same_host() {
    let clean = run("clean", module("")).await;
    assert_eq!(clean.host_calls.len(), 14, "{clean:#?}");
    assert_eq!(clean.replies[2], r#"[] b"0 undefined""#);
    for (name, pollution) in POLLUTIONS {
        compare(name, module, pollution, &clean).await;
    }
}

#[tokio::test]
async fn nothing_of_one_function_s_pollution_is_seen_by_the_next() {
    let all: String = POLLUTIONS
        .iter()
        .map(|(_, pollution)| format!("try {{ {pollution} }} catch {{}}\n"))
        .collect();
    let engine = Arc::new(nex_runtime::v8::V8Engine::new(nex_runtime::v8::V8Config::default()).unwrap());
    let harness = Harness::with_engine(engine);
    let polluter = harness.load(format!("{KEEP} {all} () => 1")).await.unwrap();
    let names = "() => [Object, Function, Array, Map, Set, Promise, String, RegExp, Error]
        .flatMap((c) => [c, c.prototype]).map((o) => Reflect.ownKeys(o).map(String).join()).join(';')";
    let fresh = Harness::new()
        .unwrap()
        .load(names)
        .await
        .unwrap()
        .call("s", "")
        .await
        .unwrap();
    _ = polluter.call("s", "").await;
    for _ in 0..4 {
        let next = harness.load(names).await.unwrap().call("s", "").await.unwrap();
        assert_eq!(next, fresh);
    }
}
