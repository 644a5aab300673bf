//! Loading functions, and the host they get: a key-value store that answers quickly, slowly or never, and sinks that
//! keep what a case looks at.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, pending, ready};
use nex_runtime::engine::{EngineEvent, FunctionHost, FunctionSpec, Limits};
use nex_runtime::host_services::{HostError, HostRequest, HostResponse, HostResult, HostServices, Operation};
use nex_runtime::logs::LogLine;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Namespace of victims and offenders alike, so that they share an agent.
const NAMESPACE: &str = "hostile";

/// A file of `fixtures/js/hostile`.
pub fn fixture(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fixtures/js/hostile")
        .join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn spec(name: &str, source: String, limits: Limits) -> FunctionSpec {
    FunctionSpec {
        id: name.to_owned(),
        namespace: NAMESPACE.to_owned(),
        name: name.to_owned(),
        workload_type: "v8".to_owned(),
        source: source.into(),
        vars: BTreeMap::from([("NAME".to_owned(), name.to_owned())]),
        limits,
    }
}

/// Gives a key as its own value, and never answers what concerns the key or subject `slow`.
struct Services;

impl HostServices for Services {
    fn call(&self, request: HostRequest) -> BoxFuture<'static, Result<HostResponse, HostError>> {
        match request.operation {
            Operation::KvGet { key: name, .. } | Operation::Publish { subject: name, .. } if name == "slow" => {
                pending().boxed()
            }
            Operation::KvGet { key, .. } => ready(Ok(HostResponse {
                result: HostResult::Value,
                payload: Bytes::from(key),
            }))
            .boxed(),
            _ => ready(Ok(HostResult::Done.into())).boxed(),
        }
    }
}

/// What a function's host has been told.
#[derive(Debug, Default)]
pub struct Ear {
    events: Mutex<Vec<EngineEvent>>,
    heard: Notify,
    logs: Mutex<Log>,
}

/// A function's log, as far as the cases look at it.
#[derive(Debug, Default, Clone)]
pub struct Log {
    pub lines: usize,
    /// Characters of the longest line.
    pub longest: usize,
}

impl Ear {
    /// Waits for an event that the condition accepts.
    pub async fn hear(&self, accept: impl Fn(&EngineEvent) -> bool) -> EngineEvent {
        loop {
            let heard = self.heard.notified();
            if let Some(event) = self.events.lock().iter().find(|event| accept(event)) {
                return event.clone();
            }
            heard.await;
        }
    }

    pub fn events(&self) -> Vec<EngineEvent> {
        self.events.lock().clone()
    }

    pub fn log(&self) -> Log {
        self.logs.lock().clone()
    }
}

pub fn host() -> (FunctionHost, Arc<Ear>) {
    let ear = Arc::new(Ear::default());
    let (events, logs) = (Arc::clone(&ear), Arc::clone(&ear));
    let host = FunctionHost {
        services: Arc::new(Services),
        logs: Arc::new(move |line: LogLine| {
            let mut log = logs.logs.lock();
            log.lines += 1;
            log.longest = log.longest.max(line.text.chars().count());
        }),
        events: Arc::new(move |event| {
            events.events.lock().push(event);
            events.heard.notify_one();
        }),
    };
    (host, ear)
}
