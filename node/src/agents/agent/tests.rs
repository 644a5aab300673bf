//! What the node remembers of an agent.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use nex_runtime::invocation::Trigger;

use super::*;
use crate::agents::slot::tests::slot;

fn agent() -> (Arc<Agent>, Arc<Slot>) {
    let (outbox, _) = Outbox::new(tokio::io::sink());
    let agent = Agent::new("agent".to_owned(), 1, "0".to_owned(), outbox);
    let slot = Arc::new(slot("one", &Arc::new(tokio::sync::Semaphore::new(1))));
    let owner = Owner {
        namespace: "ns".to_owned(),
        workload: None,
    };
    assert!(agent.assign(&owner));
    (agent, slot)
}

fn deploy(agent: &Agent, slot: &Arc<Slot>) -> Result<FunctionId, DeployError> {
    let (loading, _) = oneshot::channel();
    agent.add_function(slot, 10, loading)
}

#[test]
fn late_calls_are_forgiven_after_a_while() {
    let (agent, slot) = agent();
    let function = deploy(&agent, &slot).unwrap();
    let start = Instant::now();
    let late = |count: usize, after: u64| {
        for _ in 0..count {
            let (sender, _) = oneshot::channel();
            _ = agent.submit(function, Trigger::default(), Box::new(sender), start, false);
        }
        agent.sweep(start + Duration::from_secs(after))
    };
    assert!(!late(16, 0));
    assert!(!late(16, 61), "those before are forgotten");
    assert!(late(1, 62), "these are not");
}

#[test]
fn an_agent_is_retired_only_without_functions_and_takes_none_afterwards() {
    let (agent, slot) = agent();
    let function = deploy(&agent, &slot).unwrap();
    assert!(!agent.stop_if_idle(Duration::ZERO, Duration::ZERO));
    agent.undeploy(function);
    assert!(!agent.stop_if_idle(Duration::from_secs(60), Duration::ZERO));
    assert!(agent.stop_if_idle(Duration::ZERO, Duration::ZERO));
    assert!(matches!(deploy(&agent, &slot), Err(DeployError::OutOfService)));
}
