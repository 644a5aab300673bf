//! Who is there and what runs where: ping, workload ping, auction, info, lame duck.

use nex_runtime::engine::ProcessInfo;

use super::{Shared, VERSION};
use crate::control::messages::{
    AgentSummary, AuctionRequest, InfoResponse, LameDuckResponse, MachineSummary, MemoryStat, PingResponse,
    WorkloadPingMachine, WorkloadPingResponse,
};
use crate::limits::LimitSet;

impl Shared {
    pub(super) fn ping(&self) -> PingResponse {
        PingResponse {
            node_id: self.identity.id().to_owned(),
            nexus: Some(self.config.nexus.clone()),
            version: VERSION.to_owned(),
            uptime: self.uptime(),
            target_xkey: self.identity.public_xkey().to_owned(),
            tags: self.tags.lock().clone(),
            running_machines: self.registry.len(),
        }
    }

    /// `None` if the node does not fit.
    pub(super) fn auction(&self, request: &AuctionRequest) -> Option<PingResponse> {
        let tags = self.tags.lock().clone();
        let tagged = |key: &str, wanted: &String| tags.get(key).is_some_and(|is| is.eq_ignore_ascii_case(wanted));
        let fits = request.arch.iter().all(|arch| tagged("nex.arch", arch))
            && request.os.iter().all(|os| tagged("nex.os", os))
            && request
                .sandboxed
                .is_none_or(|sandboxed| sandboxed == self.engine.is_sandboxed())
            && request.tags.iter().all(|(key, value)| tagged(key, value))
            && request
                .workload_types
                .iter()
                .all(|wanted| self.config.workload_types.contains(wanted))
            && self.config.grant(&request.limits).is_ok();
        // A node that takes no workloads has nothing to offer.
        (fits && !self.is_lame_duck()).then(|| self.ping())
    }

    /// `None` if nothing matches.
    pub(super) fn workload_ping(&self, namespace: &str, workload: Option<&str>) -> Option<WorkloadPingResponse> {
        let matches =
            |id: &str, name: &str| workload.is_none_or(|wanted| id == wanted || name.eq_ignore_ascii_case(wanted));
        let running_machines: Vec<_> = self
            .registry
            .all()
            .iter()
            .filter(|w| w.namespace.eq_ignore_ascii_case(namespace) && matches(&w.id, &w.name))
            .map(|w| WorkloadPingMachine {
                id: w.id.clone(),
                namespace: w.namespace.clone(),
                name: w.name.clone(),
                workload_type: w.workload_type.clone(),
            })
            .collect();
        (!running_machines.is_empty()).then(|| WorkloadPingResponse {
            node_id: self.identity.id().to_owned(),
            target_xkey: self.identity.public_xkey().to_owned(),
            version: VERSION.to_owned(),
            tags: self.tags.lock().clone(),
            uptime: self.uptime(),
            running_machines,
        })
    }

    pub(super) async fn info(&self, namespace: &str) -> InfoResponse {
        let machines: Vec<MachineSummary> = self
            .registry
            .all()
            .iter()
            .filter(|w| w.namespace.eq_ignore_ascii_case(namespace))
            .map(|w| w.summary())
            .collect();
        // Agents of others are none of the caller's business.
        let mine = |agent: &ProcessInfo| {
            agent
                .namespace
                .as_ref()
                .is_none_or(|owner| owner.eq_ignore_ascii_case(namespace))
        };
        let agents = self.engine.processes().into_iter().filter(mine).map(summary).collect();
        let in_force = |limits| LimitSet::complete(&self.outbound.within_server(limits)).values();
        InfoResponse {
            agents,
            available_agents: self.engine.available_agents(),
            allow_duplicate_workloads: Some(self.config.allow_duplicate_workloads),
            limits: in_force(self.config.default_limits()),
            machines,
            max_limits: in_force(self.config.max_limits()),
            memory: memory().await,
            public_xkey: self.identity.public_xkey().to_owned(),
            supported_workload_types: self.config.workload_types.clone(),
            tags: self.tags.lock().clone(),
            uptime: self.uptime(),
            version: VERSION.to_owned(),
        }
    }

    pub(super) fn lame_duck(&self) -> LameDuckResponse {
        self.enter_lame_duck();
        LameDuckResponse {
            node_id: self.identity.id().to_owned(),
            success: true,
        }
    }
}

fn summary(agent: ProcessInfo) -> AgentSummary {
    AgentSummary {
        id: agent.id,
        pid: agent.pid,
        state: agent.state.to_owned(),
        namespace: agent.namespace,
        functions: agent.functions,
        hibernating: agent.hibernating,
        instances: agent.instances,
        in_flight: agent.in_flight,
        rss_bytes: agent.rss_bytes,
        driver: agent.driver.to_owned(),
        restored: agent.restored,
        start_us: u64::try_from(agent.started_in.as_micros()).unwrap_or(u64::MAX),
        host_bytes: agent.host_bytes,
    }
}

/// Memory of the host; `None` where there is no `/proc/meminfo`.
async fn memory() -> Option<MemoryStat> {
    parse_meminfo(&tokio::fs::read_to_string("/proc/meminfo").await.ok()?)
}

fn parse_meminfo(text: &str) -> Option<MemoryStat> {
    let value = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().trim_end_matches("kB").trim_end().parse().ok()
    };
    Some(MemoryStat {
        total: value("MemTotal")?,
        free: value("MemFree")?,
        available: value("MemAvailable")?,
    })
}

/// The operating system, as Go calls it.
pub(super) fn go_os() -> &'static str {
    match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    }
}

/// The processor architecture, as Go calls it.
pub(super) fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo() {
        let text =
            "MemTotal:        8048696 kB\nMemFree:          341776 kB\nMemAvailable:    5206168 kB\nBuffers: 1 kB\n";
        let expected = MemoryStat {
            total: 8_048_696,
            free: 341_776,
            available: 5_206_168,
        };
        assert_eq!(parse_meminfo(text), Some(expected));
        assert_eq!(parse_meminfo("MemTotal: x kB"), None);
    }
}
