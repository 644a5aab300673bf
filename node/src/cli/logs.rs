//! `nex logs`: follows the log lines of workloads.

use clap::ValueEnum;
use futures::StreamExt;
use serde::Serialize;

use super::args::{Global, Output, name_or_all};
use super::control::Session;
use super::failure::Failure;
use super::output;
use crate::control::messages::RawLog;
use crate::control::subjects;

/// Arguments of `nex logs`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only from this node
    #[arg(long, value_name = "ID", default_value = "*", hide_default_value = true, value_parser = name_or_all)]
    node: String,
    /// Only of workloads of this name
    #[arg(long = "workload_name", visible_alias = "workload-name", value_name = "NAME", default_value = "*", hide_default_value = true, value_parser = name_or_all)]
    workload_name: String,
    /// Only of the workload with this ID
    #[arg(long = "workload_id", visible_alias = "workload-id", value_name = "ID", default_value = "*", hide_default_value = true, value_parser = name_or_all)]
    workload_id: String,
    /// Only lines at least this severe
    #[arg(long, value_name = "LEVEL", default_value = "trace", ignore_case = true)]
    level: Severity,
    #[command(flatten)]
    output: Output,
}

/// Severities of log lines, lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Severity {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl Severity {
    /// Reads the level of a log message: ours, or one of the original's, such as `INFO+2`.
    fn of(level: &str) -> Self {
        let name = level.split(['+', '-']).next().unwrap_or_default();
        Self::from_str(name, true).unwrap_or(Self::Info)
    }
}

/// One line with where it comes from; what `--json` writes, one a line.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Line {
    namespace: String,
    node_id: String,
    workload_name: String,
    workload_id: String,
    level: String,
    text: String,
}

impl Line {
    /// Reads a message on `$NEX.logs.{namespace}.{node}.{workload name}.{workload ID}`.
    fn read(subject: &str, payload: &[u8]) -> Option<Self> {
        let tokens: Vec<&str> = subject.split('.').collect();
        let &["$NEX", "logs", namespace, node, workload, id] = tokens.as_slice() else {
            return None;
        };
        let log: RawLog = serde_json::from_slice(payload).ok()?;
        Some(Self {
            namespace: namespace.to_owned(),
            node_id: node.to_owned(),
            workload_name: workload.to_owned(),
            workload_id: id.to_owned(),
            level: log.level,
            text: log.text,
        })
    }
}

/// Runs the command until Ctrl-C.
pub(super) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let session = Session::open(global).await?;
    let subject = subjects::logs(&global.namespace, &args.node, &args.workload_name, &args.workload_id);
    let mut messages = session.follow(&[subject]).await?;
    while let Some(message) = messages.next().await {
        let Some(line) = Line::read(&message.subject, &message.payload) else {
            tracing::warn!(subject = %message.subject, "ignored a message that is no log line");
            continue;
        };
        if Severity::of(&line.level) < args.level {
            continue;
        }
        if args.output.json {
            output::json_line(&line)?;
        } else {
            output::line(format_args!(
                "{:<5} {} {}: {}",
                line.level, line.workload_name, line.workload_id, line.text
            ))?;
        }
    }
    Err(session.lost())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_where_they_come_from() {
        let line = Line::read(
            "$NEX.logs.default.Nxxxx.echoservice.vm1234",
            br#"{"text":"hi","level":"WARN","id":"vm1234"}"#,
        );
        let line = line.as_ref();
        assert_eq!(line.map(|line| line.node_id.as_str()), Some("Nxxxx"));
        assert_eq!(line.map(|line| line.workload_name.as_str()), Some("echoservice"));
        assert_eq!(line.map(|line| line.workload_id.as_str()), Some("vm1234"));
        assert_eq!(Line::read("$NEX.logs.default.N", b"{}"), None);
        assert_eq!(Line::read("$NEX.logs.a.b.c.d", b"null"), None);
    }

    #[test]
    fn severities_of_old_and_new_nodes() {
        for (level, expected) in [
            ("DEBUG", Severity::Debug),
            ("INFO+2", Severity::Info),
            ("error", Severity::Error),
            ("DEBUG-4", Severity::Debug),
            ("?", Severity::Info),
        ] {
            assert_eq!(Severity::of(level), expected, "{level}");
        }
        assert!(Severity::Trace < Severity::Error);
    }
}
