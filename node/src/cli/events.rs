//! `nex events`: follows what nodes and workloads report about themselves.

use futures::StreamExt;
use serde::Serialize;
use serde_json::{Map, Value};

use super::args::{Global, Output};
use super::control::Session;
use super::failure::Failure;
use super::output;
use crate::control::subjects::{self, SYSTEM_NAMESPACE};

/// Arguments of `nex events`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    output: Output,
}

/// What `--json` writes, one a line: the CloudEvent as it came, with where it came from.
#[derive(Debug, Serialize)]
struct Event {
    namespace: String,
    event_type: String,
    event: Map<String, Value>,
}

impl Event {
    /// Reads a message on `$NEX.events.{namespace}.{type}`.
    fn read(subject: &str, payload: &[u8]) -> Option<Self> {
        let tokens: Vec<&str> = subject.split('.').collect();
        let &["$NEX", "events", namespace, event_type] = tokens.as_slice() else {
            return None;
        };
        Some(Self {
            namespace: namespace.to_owned(),
            event_type: event_type.to_owned(),
            event: serde_json::from_slice(payload).ok()?,
        })
    }

    fn text(&self, key: &str) -> &str {
        self.event.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// The data of the event: if it comes with a message for people, that, and the rest as `key=value` words.
    fn data(&self) -> String {
        let members = match self.event.get("data") {
            Some(Value::Object(members)) => members,
            Some(other) => return other.to_string(),
            None => return String::new(),
        };
        let text = |key: &str| members.get(key).and_then(Value::as_str);
        let (told, known): (_, &[&str]) = match (text("workload_name"), text("message")) {
            (Some(name), Some(message)) => (Some(format!("{name}: {message}")), &TOLD),
            _ => (None, &[]),
        };
        let rest = members.iter().filter(|(key, _)| !known.contains(&key.as_str()));
        let words = rest.map(|(key, value)| match value {
            Value::String(text) => format!("{key}={text}"),
            other => format!("{key}={other}"),
        });
        told.into_iter().chain(words).collect::<Vec<_>>().join(" ")
    }
}

/// What the beginning of the line and the message have told already.
const TOLD: [&str; 6] = [
    "workload_name",
    "message",
    "workload_id",
    "namespace",
    "allowed",
    "measured",
];

/// Runs the command until Ctrl-C. Events of nodes have a namespace of their own and are always shown.
pub(super) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let session = Session::open(global).await?;
    let mut wanted = vec![subjects::events(SYSTEM_NAMESPACE, "*")];
    if global.namespace != SYSTEM_NAMESPACE {
        wanted.push(subjects::events(&global.namespace, "*"));
    }
    let mut messages = session.follow(&wanted).await?;
    while let Some(message) = messages.next().await {
        let Some(event) = Event::read(&message.subject, &message.payload) else {
            tracing::warn!(subject = %message.subject, "ignored a message that is no event");
            continue;
        };
        if args.output.json {
            output::json_line(&event)?;
        } else {
            output::line(format_args!(
                "{} {} {} {} {}",
                event.text("time"),
                event.namespace,
                event.event_type,
                event.text("source"),
                event.data()
            ))?;
        }
    }
    Err(session.lost())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_keep_their_data() {
        let event = Event::read(
            "$NEX.events.default.workload_deployed",
            br#"{"type":"workload_deployed","source":"N-1","data":{"alice":"2","bob":1}}"#,
        );
        assert_eq!(event.as_ref().map(Event::data).as_deref(), Some("alice=2 bob=1"));
        assert_eq!(event.as_ref().map(|event| event.text("source")), Some("N-1"));
        let hit = Event::read(
            "$NEX.events.default.function_limit_hit",
            br#"{"data":{"workload_id":"i","workload_name":"spin","namespace":"default","kind":"cpu_timeout",
                 "limit":"cpu_time","allowed":100,"measured":103,"suppressed":7,
                 "message":"CPU time limit of 100 ms exceeded (103 ms)"}}"#,
        );
        assert_eq!(
            hit.as_ref().map(Event::data).as_deref(),
            Some("spin: CPU time limit of 100 ms exceeded (103 ms) kind=cpu_timeout limit=cpu_time suppressed=7")
        );
        assert!(Event::read("$NEX.events.default", b"{}").is_none());
        assert!(Event::read("$NEX.events.a.b", b"[]").is_none());
    }
}
