//! What happens on a node, as CloudEvents on `$NEX.events.{namespace}.{type}`. Events of the node and its agents have the
//! namespace `system`, those of workloads the workload's.

use std::sync::Arc;

use async_nats::Subject;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::control::subjects::{self, SYSTEM_NAMESPACE};
use crate::machines::{DriverKind, StartReport};
use crate::outbound::Outbound;
use crate::text;

/// Publishes the events of one node, without ever waiting. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events {
    outbound: Outbound,
    node_id: Arc<str>,
}

#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'static str,
    id: String,
    source: &'a str,
    #[serde(rename = "type")]
    event_type: &'a str,
    datacontenttype: &'static str,
    time: String,
    /// Extension of workload events.
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    data: &'a Value,
}

impl Events {
    pub(crate) fn new(outbound: Outbound, node_id: &str) -> Self {
        Self {
            outbound,
            node_id: node_id.into(),
        }
    }

    /// An agent has become ready.
    pub fn agent_started(&self, agent_id: &str, agent_version: &str, driver: DriverKind, start: StartReport) {
        let data = json!({
            "agent_version": agent_version,
            "machine_driver": driver,
            "machine_restored": start.restored,
            "machine_start_ms": start.elapsed.as_secs_f64() * 1e3,
        });
        self.agent(agent_id, "agent_started", &data);
    }

    /// An agent has ended, as it should (code 0) or not.
    pub fn agent_stopped(&self, agent_id: &str, message: &str, code: i32) {
        self.agent(agent_id, "agent_stopped", &json!({ "message": message, "code": code }));
    }

    /// An agent takes no more calls and is being replaced, because code in it does not stop.
    pub fn agent_condemned(&self, agent_id: &str, message: &str) {
        self.agent(agent_id, "agent_condemned", &json!({ "message": message }));
    }

    fn agent(&self, agent_id: &str, event_type: &str, data: &Value) {
        let source = format!("{}-{agent_id}", self.node_id);
        self.publish(SYSTEM_NAMESPACE, &source, event_type, Some(SYSTEM_NAMESPACE), data);
    }

    pub(crate) fn node(&self, event_type: &str, data: &Value) {
        self.publish(SYSTEM_NAMESPACE, &self.node_id, event_type, None, data);
    }

    pub(crate) fn workload(&self, namespace: &str, workload_id: &str, event_type: &str, data: &Value) {
        let source = format!("{}-{workload_id}", self.node_id);
        self.publish(namespace, &source, event_type, Some(namespace), data);
    }

    fn publish(&self, namespace: &str, source: &str, event_type: &str, extension: Option<&str>, data: &Value) {
        let event = CloudEvent {
            specversion: "1.0",
            id: Uuid::new_v4().to_string(),
            source,
            event_type,
            datacontenttype: "application/json",
            time: text::now(),
            namespace: extension,
            data,
        };
        match serde_json::to_vec(&event) {
            Ok(json) => {
                let subject = Subject::from(subjects::events(namespace, event_type));
                self.outbound.send(subject, None, json.into());
            }
            Err(error) => tracing::error!(%error, event_type, "event not sent"),
        }
    }
}
