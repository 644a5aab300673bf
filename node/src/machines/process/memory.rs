//! Looks after a machine's memory where the kernel does not: without a control group that has the controller.

use std::fs;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

use super::MachineProcess;

/// How often. In this time an agent fills a few hundred MiB at most.
const PERIOD: Duration = Duration::from_millis(200);

/// Kills a process whose agent has more resident memory than that, until the handle is dropped.
pub(super) fn watch(process: &Arc<MachineProcess>, agent: Option<u32>, most: u64) -> AbortOnDropHandle<()> {
    let pid = agent.unwrap_or_else(|| process.pid());
    AbortOnDropHandle::new(tokio::spawn(look(Arc::downgrade(process), pid, most)))
}

async fn look(process: Weak<MachineProcess>, pid: u32, most: u64) {
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        let Some(process) = process.upgrade() else { return };
        if process.has_ended() {
            return;
        }
        let resident = resident_bytes(pid).unwrap_or_default();
        if resident > most {
            tracing::warn!(
                pid,
                resident,
                limit = most,
                "a machine takes more memory than it may, and is killed"
            );
            process.kill();
            return;
        }
    }
}

fn resident_bytes(pid: u32) -> Option<u64> {
    let sizes = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = sizes.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
