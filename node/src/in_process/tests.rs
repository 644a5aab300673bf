//! Functions with the same bytes share a quarantine, and each must come out of it.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use nex_runtime::engine::Limits;
use nex_runtime::host_services::{HostError, HostRequest, HostResponse, HostServices};
use nex_runtime::invocation::{Reply, Trigger};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::*;

/// An engine that loads a function once the test allows it, and says of functions what the test wants.
#[derive(Debug)]
struct Toy {
    hosts: Mutex<HashMap<String, FunctionHost>>,
    /// Loads allowed, by name. Others are not held up.
    gates: HashMap<String, Arc<Semaphore>>,
    loading: mpsc::UnboundedSender<String>,
}

impl Toy {
    fn condemn(&self, name: &str) {
        let events = self.hosts.lock()[name].events.clone();
        events.event(EngineEvent::Condemned {
            message: "it loops".to_owned(),
        });
    }
}

impl Engine for Toy {
    fn workload_types(&self) -> &'static [&'static str] {
        &["toy"]
    }

    fn load(&self, spec: FunctionSpec, host: FunctionHost) -> BoxFuture<'static, Result<Arc<dyn Function>, LoadError>> {
        self.hosts.lock().insert(spec.name.clone(), host);
        let gate = self.gates.get(&spec.name).cloned();
        _ = self.loading.send(spec.name);
        Box::pin(async move {
            if let Some(gate) = gate {
                gate.acquire().await.unwrap().forget();
            }
            Ok(Arc::new(Echo) as Arc<dyn Function>)
        })
    }
}

#[derive(Debug)]
struct Echo;

impl Function for Echo {
    fn invoke(&self, trigger: Trigger, replies: Box<dyn ReplySink>) {
        replies.finish(Ok(Reply {
            body: trigger.payload,
            ..Reply::default()
        }));
    }
}

struct Nothing;

impl HostServices for Nothing {
    fn call(&self, _request: HostRequest) -> BoxFuture<'static, Result<HostResponse, HostError>> {
        Box::pin(std::future::pending())
    }
}

struct Events(mpsc::UnboundedSender<EngineEvent>);

impl EventSink for Events {
    fn event(&self, event: EngineEvent) {
        _ = self.0.send(event);
    }
}

async fn load(engine: &InProcess, name: &str) -> (Arc<dyn Function>, mpsc::UnboundedReceiver<EngineEvent>) {
    let spec = FunctionSpec {
        id: name.to_owned(),
        namespace: "ns".to_owned(),
        name: name.to_owned(),
        workload_type: "toy".to_owned(),
        source: Bytes::from_static(b"the same"),
        vars: BTreeMap::new(),
        limits: Limits::default(),
    };
    let (sender, events) = mpsc::unbounded_channel();
    let host = FunctionHost {
        services: Arc::new(Nothing),
        logs: Arc::new(|_| ()),
        events: Arc::new(Events(sender)),
    };
    (engine.load(spec, host).await.unwrap(), events)
}

async fn call(function: &Arc<dyn Function>) -> Result<Reply, InvokeError> {
    let (sender, receiver) = oneshot::channel();
    function.invoke(Trigger::default(), Box::new(sender));
    receiver.await.unwrap()
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.unwrap()
}

async fn heard(events: &mut mpsc::UnboundedReceiver<EngineEvent>, wanted: fn(&EngineEvent) -> bool) {
    within(async { while !wanted(&events.recv().await.unwrap()) {} }).await;
}

#[tokio::test]
async fn a_function_whose_twin_is_quarantined_while_it_starts_again_is_served_in_the_end() {
    let (loading, mut loads) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(1));
    let toy = Arc::new(Toy {
        hosts: Mutex::default(),
        gates: HashMap::from([("slow".to_owned(), gate.clone())]),
        loading,
    });
    let rules = QuarantineRules {
        after: 1,
        duration: Duration::from_millis(300),
        ..QuarantineRules::default()
    };
    let engine = InProcess::new(toy.clone(), rules);
    let (_quick, mut quick_events) = load(&engine, "quick").await;
    let (slow, mut slow_events) = load(&engine, "slow").await;
    for _ in 0..2 {
        within(loads.recv()).await.unwrap();
    }

    toy.condemn("quick");
    toy.condemn("slow");
    assert_eq!(call(&slow).await.unwrap_err().kind, ErrorKind::Quarantined);
    // Both start again at the same time, and one is quarantined before the other has loaded.
    for _ in 0..2 {
        within(loads.recv()).await.unwrap();
    }
    heard(&mut slow_events, |event| matches!(event, EngineEvent::Released)).await;
    heard(&mut quick_events, |event| matches!(event, EngineEvent::Released)).await;
    assert_eq!(call(&slow).await.unwrap_err().kind, ErrorKind::NotReady);
    toy.condemn("quick");
    gate.add_permits(10);

    heard(&mut slow_events, |event| {
        matches!(event, EngineEvent::Quarantined { .. })
    })
    .await;
    heard(&mut slow_events, |event| matches!(event, EngineEvent::Released)).await;
    within(async {
        while call(&slow).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
