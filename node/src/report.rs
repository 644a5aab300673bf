//! What one workload has to tell: its log lines, how its calls end, what the engine says of it. It all goes to NATS, and
//! none of it may hold up a thread that runs functions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::Subject;
use nex_runtime::engine::{EngineEvent, EventSink};
use nex_runtime::invocation::InvokeError;
use nex_runtime::logs::{LogLevel, LogLine, LogSink, MAX_LOG_LINE};
use parking_lot::Mutex;
use serde_json::json;

use crate::control::messages::RawLog;
use crate::control::subjects;
use crate::events::Events;
use crate::outbound::Outbound;

/// Failed calls reported one by one in each second; the others are counted.
const FAILURES_PER_SECOND: u32 = 100;

/// Names of a workload.
#[derive(Debug, Clone)]
pub(crate) struct WorkloadName {
    pub(crate) id: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// Reports for one workload.
#[derive(Debug)]
pub(crate) struct Reporter {
    workload: WorkloadName,
    events: Events,
    outbound: Outbound,
    logs: Subject,
    /// Whether successful calls are events, too.
    report_success: bool,
    /// Nanoseconds that all calls took.
    runtime: AtomicU64,
    failures: Mutex<Throttle>,
}

impl Reporter {
    pub(crate) fn new(
        workload: WorkloadName,
        node_id: &str,
        events: Events,
        outbound: Outbound,
        report_success: bool,
    ) -> Self {
        let logs = subjects::logs(&workload.namespace, node_id, &workload.name, &workload.id);
        Self {
            workload,
            events,
            outbound,
            logs: logs.into(),
            report_success,
            runtime: AtomicU64::new(0),
            failures: Mutex::new(Throttle::default()),
        }
    }

    /// Execution time of all calls so far.
    pub(crate) fn runtime(&self) -> Duration {
        Duration::from_nanos(self.runtime.load(Ordering::Relaxed))
    }

    /// A call has been answered.
    pub(crate) fn succeeded(&self, trigger_subject: &str, elapsed: Duration) {
        self.count(elapsed);
        if self.report_success {
            self.emit(
                "function_exec_succeeded",
                &json!({
                    "workload_id": self.workload.id,
                    "workload_name": self.workload.name,
                    "namespace": self.workload.namespace,
                    "trigger_subject": trigger_subject,
                    "elapsed_nanos": u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
                }),
            );
        }
    }

    /// A call has failed; whoever waits for it has been told.
    pub(crate) fn failed(&self, trigger_subject: &str, elapsed: Duration, error: &InvokeError) {
        self.count(elapsed);
        let Some(suppressed) = self.failures.lock().allow(Instant::now()) else {
            return;
        };
        let mut data = json!({
            "workload_id": self.workload.id,
            "workload_name": self.workload.name,
            "namespace": self.workload.namespace,
            "trigger_subject": trigger_subject,
            "error": error.message,
            "kind": error.kind.as_str(),
        });
        if suppressed > 0 {
            data["suppressed"] = suppressed.into();
        }
        self.emit("function_exec_failed", &data);
        let text = error.stack.as_ref().unwrap_or(&error.message);
        let text = format!("call on {trigger_subject} failed ({}): {text}", error.kind);
        self.log(LogLine {
            level: LogLevel::Error,
            text: text.chars().take(MAX_LOG_LINE).collect(),
        });
    }

    pub(crate) fn emit(&self, event_type: &str, data: &serde_json::Value) {
        self.events
            .workload(&self.workload.namespace, &self.workload.id, event_type, data);
    }

    fn count(&self, elapsed: Duration) {
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.runtime.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl LogSink for Reporter {
    fn log(&self, line: LogLine) {
        let log = RawLog {
            text: line.text,
            level: line.level.as_str().to_owned(),
            id: self.workload.id.clone(),
        };
        match serde_json::to_vec(&log) {
            Ok(json) => self.outbound.send(self.logs.clone(), None, json.into()),
            Err(error) => tracing::error!(%error, "log line not sent"),
        }
    }
}

impl EventSink for Reporter {
    fn event(&self, event: EngineEvent) {
        let workload = &self.workload;
        let (event_type, limit, message) = match event {
            EngineEvent::LimitHit(hit) => ("function_limit_hit", Some(hit), hit.to_string()),
            EngineEvent::Condemned { message } => ("function_condemned", None, message),
            other => ("function_engine_event", None, format!("{other:?}")),
        };
        tracing::warn!(workload.id, workload.namespace, workload.name, event_type, message);
        self.emit(
            event_type,
            &json!({
                "workload_id": workload.id,
                "workload_name": workload.name,
                "namespace": workload.namespace,
                "kind": limit.map(|hit| hit.limit.error_kind().as_str()),
                "limit": limit.map(|hit| hit.limit.as_str()),
                "allowed": limit.map(|hit| hit.allowed),
                "measured": limit.map(|hit| hit.measured),
                "message": message,
            }),
        );
    }
}

/// Lets so many through in each second and counts the others.
#[derive(Debug, Default)]
struct Throttle {
    window: Option<Instant>,
    passed: u32,
    suppressed: u64,
}

impl Throttle {
    /// Whether this one may pass; if so, with how many have not since the last that did.
    fn allow(&mut self, now: Instant) -> Option<u64> {
        if self
            .window
            .is_none_or(|start| now.duration_since(start) >= Duration::from_secs(1))
        {
            self.window = Some(now);
            self.passed = 0;
        }
        if self.passed < FAILURES_PER_SECOND {
            self.passed += 1;
            Some(std::mem::take(&mut self.suppressed))
        } else {
            self.suppressed += 1;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        for _ in 0..FAILURES_PER_SECOND {
            assert_eq!(throttle.allow(start), Some(0));
        }
        assert_eq!(throttle.allow(start), None);
        assert_eq!(throttle.allow(start + Duration::from_millis(999)), None);
        assert_eq!(throttle.allow(start + Duration::from_secs(1)), Some(2));
        assert_eq!(throttle.allow(start + Duration::from_secs(1)), Some(0));
    }
}
