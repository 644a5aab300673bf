//! What one workload has to tell: its log lines, how its calls end, what the engine says of it. It all goes to NATS, and
//! none of it may hold up a thread that runs functions.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::Subject;
use nex_runtime::engine::{EngineEvent, EventSink, Limit, LimitHit};
use nex_runtime::invocation::InvokeError;
use nex_runtime::logs::{LogLevel, LogLine, LogSink, MAX_LOG_LINE};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::control::messages::RawLog;
use crate::control::subjects;
use crate::events::Events;
use crate::outbound::Outbound;
use crate::text;

/// Failed calls reported one by one in each second; the others are counted.
const FAILURES_PER_SECOND: u32 = 100;

/// Hits of one limit reported one by one in each second; the others are counted.
const LIMIT_HITS_PER_SECOND: u32 = 1;

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
    /// One for each limit.
    limit_hits: Mutex<HashMap<Limit, Throttle>>,
    condition: Mutex<Condition>,
}

/// Whether the function can be called, as far as its engine is concerned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Condition {
    #[default]
    Ready,
    /// Its calls are answered `quarantined`.
    Quarantined { message: String },
    /// Its calls are answered `not_ready`.
    Lost { message: String },
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
            failures: Mutex::new(Throttle::new(FAILURES_PER_SECOND)),
            limit_hits: Mutex::default(),
            condition: Mutex::default(),
        }
    }

    /// How the function is, by what its engine has reported.
    pub(crate) fn condition(&self) -> Condition {
        self.condition.lock().clone()
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
        match event {
            EngineEvent::LimitHit(hit) => self.limit_hit(hit),
            EngineEvent::Condemned { message } => self.report("function_condemned", &message, json!({})),
            EngineEvent::Quarantined { since, until, message } => {
                let times = json!({ "since": text::instant(since), "until": text::instant(until) });
                self.report("function_quarantined", &message, times);
                *self.condition.lock() = Condition::Quarantined { message };
            }
            EngineEvent::Released => {
                *self.condition.lock() = Condition::Ready;
                let message = "the quarantine is over; the function gets one more chance";
                self.report("function_released", message, json!({}));
            }
            EngineEvent::Lost { message } => {
                self.report("function_lost", &message, json!({}));
                *self.condition.lock() = Condition::Lost { message };
            }
            other => self.report("function_engine_event", &format!("{other:?}"), json!({})),
        }
    }
}

impl Reporter {
    /// A function may hit a soft limit in every line of a loop: of each limit, the first hit in a second is an event, and
    /// says how many were none.
    fn limit_hit(&self, hit: LimitHit) {
        let allowed = {
            let mut throttles = self.limit_hits.lock();
            let throttle = throttles
                .entry(hit.limit)
                .or_insert_with(|| Throttle::new(LIMIT_HITS_PER_SECOND));
            throttle.allow(Instant::now())
        };
        let Some(suppressed) = allowed else {
            return;
        };
        let mut data = json!({
            "kind": hit.limit.error_kind().as_str(),
            "limit": hit.limit.as_str(),
            "allowed": hit.allowed,
            "measured": hit.measured,
        });
        if suppressed > 0 {
            data["suppressed"] = suppressed.into();
        }
        self.report("function_limit_hit", &hit.to_string(), data);
    }

    /// Publishes an engine event, and logs it as the node's own.
    fn report(&self, event_type: &str, message: &str, mut data: Value) {
        let workload = &self.workload;
        tracing::warn!(workload.id, workload.namespace, workload.name, event_type, "{message}");
        data["workload_id"] = workload.id.as_str().into();
        data["workload_name"] = workload.name.as_str().into();
        data["namespace"] = workload.namespace.as_str().into();
        data["message"] = message.into();
        self.emit(event_type, &data);
    }
}

/// Lets so many through in each second and counts the others.
#[derive(Debug)]
struct Throttle {
    per_second: u32,
    window: Option<Instant>,
    passed: u32,
    suppressed: u64,
}

impl Throttle {
    fn new(per_second: u32) -> Self {
        Self {
            per_second,
            window: None,
            passed: 0,
            suppressed: 0,
        }
    }

    /// Whether this one may pass; if so, with how many have not since the last that did.
    fn allow(&mut self, now: Instant) -> Option<u64> {
        if self
            .window
            .is_none_or(|start| now.duration_since(start) >= Duration::from_secs(1))
        {
            self.window = Some(now);
            self.passed = 0;
        }
        if self.passed < self.per_second {
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
        let mut throttle = Throttle::new(FAILURES_PER_SECOND);
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
