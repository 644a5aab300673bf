//! Calls of a function without a place.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::BoxFuture;
use nex_runtime::engine::{EngineEvent, EventSink, Limits};
use nex_runtime::host_services::{HostError, HostRequest, HostResponse, HostServices};
use nex_runtime::invocation::Reply;
use tokio::sync::oneshot;

use super::*;
use crate::quarantine::{Ledger, QuarantineRules};

struct Nothing;

impl HostServices for Nothing {
    fn call(&self, _request: HostRequest) -> BoxFuture<'static, Result<HostResponse, HostError>> {
        Box::pin(std::future::pending())
    }
}

impl EventSink for Nothing {
    fn event(&self, _event: EngineEvent) {}
}

pub(in crate::agents) fn slot(name: &str, waiting_kib: &Arc<Semaphore>) -> Slot {
    let spec = FunctionSpec {
        id: name.to_owned(),
        namespace: "ns".to_owned(),
        name: name.to_owned(),
        workload_type: "v8".to_owned(),
        source: Bytes::new(),
        vars: BTreeMap::new(),
        limits: Limits::default(),
    };
    let host = FunctionHost {
        services: Arc::new(Nothing),
        logs: Arc::new(|_| ()),
        events: Arc::new(Nothing),
    };
    let record = Ledger::new(QuarantineRules::default()).record("ns", b"");
    Slot::new(spec, host, record, Duration::ZERO, waiting_kib.clone())
}

fn call(slot: &Slot, bytes: usize) -> oneshot::Receiver<Result<Reply, InvokeError>> {
    let (sender, receiver) = oneshot::channel();
    let trigger = Trigger {
        payload: vec![0; bytes].into(),
        ..Trigger::default()
    };
    let replies = Box::new(sender);
    slot.invoke(std::iter::once(Invocation { trigger, replies }));
    receiver
}

#[test]
fn calls_that_wait_for_a_place_are_bounded_in_bytes_for_all_functions_together() {
    let memory = Arc::new(Semaphore::new(100));
    let (one, other) = (slot("one", &memory), slot("other", &memory));
    let mut waits = call(&one, 60 << 10);
    assert!(waits.try_recv().is_err(), "it should wait");

    let refused = call(&other, 60 << 10).try_recv().unwrap().unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Overloaded);
    let mut small = call(&other, 1 << 10);
    assert!(small.try_recv().is_err(), "there is room for it");

    one.end("it was stopped");
    assert_eq!(waits.try_recv().unwrap().unwrap_err().kind, ErrorKind::NotReady);
    let mut waits = call(&other, 60 << 10);
    assert!(waits.try_recv().is_err(), "there is room again");
}
