//! Corrupted and hostile frames from machines, of every type and by the thousand. The machines are in memory, so that each
//! frame has one of its own; what receives them is the real pool. Whatever comes, the caller is answered, the machine is
//! dropped, nothing panics and no memory is left behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{fmt, io};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use nex_agent::link::{
    AgentToNode, CallId, FunctionId, HEADER_LEN, Health, Hello, LinkReader, NodeToAgent, Outbox, PROTOCOL_VERSION,
};
use nex_node::agents::{AgentPool, AgentPoolConfig, QuarantineRules};
use nex_node::machines::{DriverKind, Machine, MachineDriver, MachineError, MachineStats, Port, StartReport, Stream};
use nex_runtime::engine::{Engine, EngineEvent, EventSink, FunctionHost, FunctionSpec, Limit, LimitHit, Limits};
use nex_runtime::host_services::{HostError, HostErrorCode, HostRequest, HostResponse, HostServices, Operation};
use nex_runtime::invocation::{ErrorKind, InvokeError, Reply, Trigger};
use nex_runtime::logs::{LogLevel, LogLine};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Frames of each type and kind of damage.
const ROUNDS: u64 = 1_000;

/// What the process may have grown by in the end.
const MAX_GROWTH: u64 = 64 << 20;

const PATIENCE: Duration = Duration::from_secs(10);

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// The types of frames.
const TYPES: [&str; 10] = [
    "hello",
    "deploy_result",
    "stream",
    "reply",
    "reply_error",
    "host_call",
    "host_cancel",
    "log",
    "event",
    "pong",
];

fn message(name: &str, function: FunctionId, call: CallId) -> AgentToNode {
    let reply = Reply {
        headers: vec![("k".to_owned(), "v".to_owned())],
        body: Bytes::from_static(b"body"),
    };
    match name {
        "hello" => hello(),
        "deploy_result" => AgentToNode::DeployResult {
            function,
            result: Ok(()),
        },
        "stream" => AgentToNode::Stream { call, reply },
        "reply" => AgentToNode::Reply { call, reply },
        "reply_error" => AgentToNode::ReplyError {
            call,
            error: InvokeError::new(ErrorKind::Exception, "thrown"),
        },
        "host_call" => AgentToNode::HostCall {
            call: CallId(1),
            function,
            request: HostRequest {
                operation: Operation::KvGet {
                    bucket: Some("b".to_owned()),
                    key: "k".to_owned(),
                },
                payload: Bytes::from_static(b"payload"),
            },
        },
        "host_cancel" => AgentToNode::HostCancel { call: CallId(1) },
        "log" => AgentToNode::Log {
            function,
            line: LogLine {
                level: LogLevel::Info,
                text: "said".to_owned(),
            },
        },
        "event" => AgentToNode::Event {
            function,
            event: EngineEvent::LimitHit(LimitHit {
                limit: Limit::Timers,
                allowed: 1,
                measured: 2,
            }),
        },
        "pong" => AgentToNode::Pong {
            nonce: 1,
            health: Health::default(),
        },
        other => panic!("no frame {other}"),
    }
}

fn hello() -> AgentToNode {
    AgentToNode::Hello(Hello {
        agent_version: "0".to_owned(),
        pid: 1,
        workload_types: vec!["v8".to_owned()],
        capabilities: Vec::new(),
    })
}

/// The bytes of a message on the wire.
async fn encoded(message: AgentToNode) -> Vec<u8> {
    let (mut read, write) = tokio::io::duplex(1 << 16);
    let (outbox, task) = Outbox::new(write);
    outbox.send(message).unwrap();
    outbox.close();
    task.run().await.unwrap();
    let mut bytes = Vec::new();
    read.read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// Damages a frame; true if no reader may take it for a good one.
fn damage(frame: &mut Vec<u8>, random: &mut SmallRng) -> bool {
    let set = |frame: &mut Vec<u8>, at: usize, value: u32| frame[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let get = |frame: &[u8], at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().unwrap());
    match random.random_range(0..10) {
        // A few bits anywhere.
        0..3 => {
            for _ in 0..random.random_range(1..=8) {
                let bit = random.random_range(0..frame.len() * 8);
                frame[bit / 8] ^= 1 << (bit % 8);
            }
            false
        }
        // Cut short.
        3 => {
            frame.truncate(random.random_range(0..frame.len()));
            false
        }
        // Another id.
        4 => {
            frame[8..16].copy_from_slice(&random.random::<u64>().to_le_bytes());
            false
        }
        // Again and again.
        5 => {
            *frame = frame.repeat(random.random_range(2..50));
            false
        }
        // No such kind.
        6 => {
            frame[16] = random.random_range(75..=255_u8);
            true
        }
        // Reserved bits.
        7 => {
            frame[17 + random.random_range(0..3)] = random.random_range(1..=255);
            true
        }
        // More metadata than there are bytes, or more of both than anybody may send.
        8 => {
            let part = if random.random() { 4 } else { 0 };
            let least = if part == 4 { get(frame, 0) + 1 } else { (65 << 20) + 1 };
            set(frame, part, random.random_range(least..=u32::MAX));
            true
        }
        // Something behind the metadata that nothing accounts for.
        _ => {
            let (len, meta) = (get(frame, 0), get(frame, 4));
            frame.insert(HEADER_LEN + meta as usize, random.random());
            set(frame, 0, len + 1);
            set(frame, 4, meta + 1);
            true
        }
    }
}

/// What a machine sends when its function is called.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    seed: u64,
}

/// Starts machines that play the case.
#[derive(Debug, Clone)]
struct Saboteurs {
    case: Arc<Mutex<Case>>,
    alive: Arc<AtomicUsize>,
}

struct Saboteur {
    link: std::sync::Mutex<Option<DuplexStream>>,
    gone: CancellationToken,
    alive: Arc<AtomicUsize>,
}

impl fmt::Debug for Saboteur {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Saboteur")
    }
}

impl MachineDriver for Saboteurs {
    fn kind(&self) -> DriverKind {
        DriverKind::Process
    }

    fn boot(&self, _id: &str) -> BoxFuture<'_, Result<Arc<dyn Machine>, MachineError>> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let case = self.case.clone();
        let gone = CancellationToken::new();
        let ended = gone.clone();
        tokio::spawn(async move {
            ended.run_until_cancelled(sabotage(far, case)).await;
            // A machine ends with what runs in it.
            ended.cancel();
        });
        self.alive.fetch_add(1, Ordering::SeqCst);
        let machine: Arc<dyn Machine> = Arc::new(Saboteur {
            link: std::sync::Mutex::new(Some(near)),
            gone,
            alive: self.alive.clone(),
        });
        std::future::ready(Ok(machine)).boxed()
    }
}

impl Machine for Saboteur {
    fn pid(&self) -> u32 {
        std::process::id()
    }

    fn connect(&self, _port: Port) -> BoxFuture<'_, io::Result<Stream>> {
        let (reader, writer) = tokio::io::split(self.link.lock().unwrap().take().unwrap());
        let stream = Stream {
            reader: Box::new(reader),
            writer: Box::new(writer),
        };
        std::future::ready(Ok(stream)).boxed()
    }

    fn pause(&self) -> BoxFuture<'_, Result<(), MachineError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn resume(&self) -> BoxFuture<'_, Result<(), MachineError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn stop(&self, _grace: Duration) -> BoxFuture<'_, ExitStatus> {
        self.kill();
        self.wait()
    }

    fn kill(&self) {
        self.gone.cancel();
    }

    fn wait(&self) -> BoxFuture<'_, ExitStatus> {
        self.gone.cancelled().map(|()| ExitStatus::default()).boxed()
    }

    fn stats(&self) -> MachineStats {
        MachineStats::default()
    }

    fn start(&self) -> StartReport {
        StartReport::default()
    }

    fn take_logs(&self) -> Vec<Box<dyn AsyncRead + Send + Unpin>> {
        Vec::new()
    }
}

impl Drop for Saboteur {
    fn drop(&mut self) {
        self.kill();
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A well-behaved agent until its function is called.
async fn sabotage(link: DuplexStream, case: Arc<Mutex<Case>>) {
    let (read, mut write) = tokio::io::split(link);
    let mut reader = LinkReader::<NodeToAgent>::new(read);
    if write.write_all(&encoded(hello()).await).await.is_err() {
        return;
    }
    while let Ok(Some(message)) = reader.next().await {
        match message {
            NodeToAgent::Deploy { function, .. } => {
                let done = AgentToNode::DeployResult {
                    function,
                    result: Ok(()),
                };
                _ = write.write_all(&encoded(done).await).await;
            }
            NodeToAgent::Ping { nonce } => {
                let health = Health::default();
                _ = write
                    .write_all(&encoded(AgentToNode::Pong { nonce, health }).await)
                    .await;
            }
            NodeToAgent::Trigger { call, function, .. } => {
                let Case { name, seed } = *case.lock().await;
                let mut random = SmallRng::seed_from_u64(seed);
                let mut frame = encoded(self::message(name, function, call)).await;
                let surely_bad = damage(&mut frame, &mut random);
                _ = write.write_all(&frame).await;
                if surely_bad {
                    // The node must see for itself what it has.
                    std::future::pending::<()>().await;
                }
                return;
            }
            _ => {}
        }
    }
}

struct Services;

impl HostServices for Services {
    fn call(&self, _request: HostRequest) -> BoxFuture<'static, Result<HostResponse, HostError>> {
        std::future::ready(Err(HostError::new(HostErrorCode::PermissionDenied, "no"))).boxed()
    }
}

struct Nobody;

impl EventSink for Nobody {
    fn event(&self, _event: EngineEvent) {}
}

fn spec(name: &str) -> FunctionSpec {
    FunctionSpec {
        id: name.to_owned(),
        namespace: "ns".to_owned(),
        name: name.to_owned(),
        workload_type: "v8".to_owned(),
        source: Bytes::copy_from_slice(name.as_bytes()),
        vars: BTreeMap::new(),
        limits: Limits::default(),
    }
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: nothing happened for {PATIENCE:?}"))
}

async fn pool(case: Case) -> (Arc<AgentPool>, Saboteurs) {
    let saboteurs = Saboteurs {
        case: Arc::new(Mutex::new(case)),
        alive: Arc::default(),
    };
    let pool = AgentPool::start(AgentPoolConfig {
        quarantine: QuarantineRules {
            after: u32::MAX,
            ..QuarantineRules::default()
        },
        // A silent machine would be dropped for that, and the test not see why.
        heartbeat_timeout: PATIENCE * 2,
        ..AgentPoolConfig::new(saboteurs.clone())
    });
    (pool.await.unwrap(), saboteurs)
}

#[tokio::test]
async fn a_thousand_bad_frames_of_each_type() {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        default_hook(panic);
    }));
    let mut before = None;
    for (index, name) in TYPES.into_iter().enumerate() {
        let (pool, saboteurs) = pool(Case { name, seed: 0 }).await;
        for round in 0..ROUNDS {
            let seed = (index as u64) << 32 | round;
            *saboteurs.case.lock().await = Case { name, seed };
            let what = format!("{name}, seed {seed}");
            let host = FunctionHost {
                services: Arc::new(Services),
                logs: Arc::new(|_| ()),
                events: Arc::new(Nobody),
            };
            let function = within(&what, pool.load(spec(&what), host)).await.unwrap();
            let mut events = pool.subscribe();
            let offender = pool.agents().into_iter().find(|agent| agent.functions.contains(&what));
            let offender = offender.expect("the function is somewhere").id;
            // Whatever it is told: a damaged reply may pass for another one.
            _ = within(&what, function.call(Trigger::default())).await;
            let dropped = async {
                while pool.agents().iter().any(|agent| agent.id == offender) {
                    _ = events.recv().await;
                }
            };
            within(&what, dropped).await;
        }
        pool.shutdown().await;
        drop(pool);
        within(name, async {
            while saboteurs.alive.load(Ordering::SeqCst) > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        before.get_or_insert_with(resident_bytes);
    }
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "something panicked");
    let growth = resident_bytes().saturating_sub(before.unwrap());
    assert!(growth < MAX_GROWTH, "{growth} bytes are left");
}

/// The frames are good ones before they are damaged, else the test above would show little.
#[tokio::test]
async fn an_undamaged_reply_is_taken() {
    let frame = encoded(message("reply", FunctionId(1), CallId(1))).await;
    let mut reader = LinkReader::<AgentToNode>::new(io::Cursor::new(frame));
    assert!(matches!(reader.next().await, Ok(Some(AgentToNode::Reply { .. }))));
    let hello = encoded(hello()).await;
    assert_eq!(hello[8..16], PROTOCOL_VERSION.to_le_bytes());
}
