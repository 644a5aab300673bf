//! `nex invoke`: runs a function once in this process, on the engine of production and on in-memory host services.
//!
//! Standard output carries the reply and nothing else, byte for byte; logs and errors go to standard error.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use nex_host_services::http::ReqwestHttp;
use nex_host_services::memory::Memory;
use nex_host_services::{Backends, Config, Policy, Services};
use nex_runtime::engine::{Engine, Limits, LoadError};
use nex_runtime::harness::{Harness, HarnessFunction};
use nex_runtime::invocation::{InvokeError, Reply, Trigger};
use nex_runtime::logs::LogLine;
use nex_runtime::v8::{V8Config, V8Engine};
use serde::Serialize;
use tokio::runtime::Handle;

use super::args::{Global, LimitArgs, Output, assignment, header, name, read_file};
use super::failure::{Failure, Status};
use super::{output, source};
use crate::limits::LimitSet;

const HELP: &str = "\
The reply goes to standard output as it is, what the function logs to standard error.
KV buckets, object stores and messaging live in memory and start empty; HTTP is real.
--timeout bounds the invocation, waiting included [default: 30s]; --limit sets the other limits, and outranks it.

Exit status: 0 if the function replied, 1 if it threw, hit a limit or does not compile, 2 for wrong arguments.";

/// Arguments of `nex invoke`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Source file of the function
    file: PathBuf,
    /// Subject of the message
    #[arg(long, default_value = "invoke")]
    subject: String,
    /// Payload of the message [default: empty]
    #[arg(long, allow_hyphen_values = true)]
    payload: Option<String>,
    /// File with the payload of the message; - for standard input
    #[arg(long, alias = "payload_file", value_name = "FILE", conflicts_with = "payload")]
    payload_file: Option<PathBuf>,
    /// Header of the message; may be given several times
    #[arg(long = "header", value_name = "NAME:VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Environment of the function: `env.vars`; may be given several times
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = assignment)]
    environment: Vec<(String, String)>,
    /// Workload name [default: the file's name without dots]
    #[arg(long, value_parser = name)]
    name: Option<String>,
    /// Workload type [default: by the file's extension]
    #[arg(long = "type", value_name = "TYPE")]
    workload_type: Option<String>,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    output: Output,
}

/// Runs the command.
pub(super) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let content = read_file("function", &args.file)?;
    let workload_type = source::type_or(args.workload_type.as_deref(), &args.file)?;
    let name = source::name_or(args.name.as_deref(), &args.file)?;
    let payload = payload(&args)?;

    let mut limits = Limits {
        // Nothing carries the reply further, so nothing but memory bounds it.
        reply_bytes: u32::MAX,
        ..Limits::default()
    };
    if let Some(timeout) = global.timeout {
        limits.wall_time = timeout;
    }
    let json = args.output.json;
    let harness = harness(global, &workload_type, &name)?
        .limits(args.limits.set().over(limits))
        .vars(args.environment)
        .log_sink(if json {
            Arc::new(|_: LogLine| {})
        } else {
            Arc::new(|line: LogLine| show(&line))
        });
    let trigger = Trigger {
        subject: args.subject,
        reply: Some("_INBOX.invoke".to_owned()),
        headers: args.headers,
        payload,
    };
    let mut outcome = match harness.load(content).await {
        Ok(function) => Outcome::of(&function, trigger).await,
        Err(error) => Outcome::of_load(&error),
    };
    outcome.locate(&name, &args.file);
    outcome.write(json)
}

fn show(line: &LogLine) {
    output::diagnostic(&format!("[{}] {}", line.level.as_str(), line.text));
}

/// Loads a function without calling it, to see whether it would start. Types that only nodes run are taken on trust.
pub(super) async fn check(
    global: &Global,
    name: &str,
    workload_type: &str,
    limits: LimitSet,
    source: Bytes,
) -> Result<(), LoadError> {
    match harness(global, workload_type, name) {
        Ok(harness) => {
            let harness = harness.limits(limits.over(Limits::default()));
            harness.load(source).await.map(drop)
        }
        Err(_) => Ok(()),
    }
}

/// The engine for one function, with host services in memory. HTTP is the exception, for nobody could script it here.
fn harness(global: &Global, workload_type: &str, name: &str) -> Result<Harness, Failure> {
    // One function is run once: no further isolates are kept ready.
    let engine = V8Engine::new(V8Config {
        pool_size: 0,
        ..V8Config::default()
    })
    .map_err(Failure::failed)?;
    if !engine.workload_types().contains(&workload_type) {
        return Err(Failure::usage(format_args!(
            "workloads of type `{workload_type}` cannot be invoked; expected one of: {}",
            engine.workload_types().join(", ")
        )));
    }
    let policy = Policy::new(&global.namespace, name, Config::default());
    let backends = Backends {
        http: Arc::new(ReqwestHttp::new()),
        ..Memory::new().backends()
    };
    let services = Services::new(policy, backends, Some(Handle::current()));
    Ok(Harness::with_engine(Arc::new(engine))
        .services(Arc::new(services))
        .name(name))
}

fn payload(args: &Args) -> Result<Bytes, Failure> {
    match (&args.payload, &args.payload_file) {
        (Some(text), _) => Ok(text.clone().into()),
        (None, Some(path)) if path == Path::new("-") => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).map_err(|error| {
                Failure::usage(format_args!("cannot read the payload from standard input: {error}"))
            })?;
            Ok(bytes.into())
        }
        (None, Some(path)) => Ok(read_file("payload", path)?.into()),
        (None, None) => Ok(Bytes::new()),
    }
}

/// What came of it; what `--json` writes.
#[derive(Serialize)]
struct Outcome {
    /// The reply; several of a function that streams.
    replies: Vec<ReplyReport>,
    /// `null` if the function replied.
    error: Option<ErrorReport>,
    logs: Vec<LogLine>,
}

#[derive(Serialize)]
struct ReplyReport {
    headers: BTreeMap<String, Vec<String>>,
    payload_base64: String,
    /// The payload as text, if it is UTF-8.
    text: Option<String>,
    #[serde(skip)]
    body: Bytes,
}

#[derive(Serialize)]
struct ErrorReport {
    /// As in the header `Nex-Error-Kind`, or `load` for a function that does not start.
    kind: &'static str,
    message: String,
    name: Option<String>,
    stack: Option<String>,
}

impl Outcome {
    /// Calls the function.
    async fn of(function: &HarnessFunction, trigger: Trigger) -> Self {
        let mut replies = Vec::new();
        let mut error = None;
        for answer in function.stream(trigger).await {
            match answer {
                Ok(reply) => replies.push(reply),
                Err(failure) => error = Some(failure.into()),
            }
        }
        // The end of a stream is marked by an empty reply.
        if error.is_none() && replies.len() > 1 && replies.last() == Some(&Reply::default()) {
            replies.pop();
        }
        Self {
            replies: replies.into_iter().map(ReplyReport::from).collect(),
            error,
            logs: function.logs(),
        }
    }

    fn of_load(error: &LoadError) -> Self {
        let error = ErrorReport {
            kind: "load",
            message: error.to_string(),
            name: None,
            stack: None,
        };
        Self {
            replies: Vec::new(),
            error: Some(error),
            logs: Vec::new(),
        }
    }

    /// Replaces the engine's name for the source with the file it came from.
    fn locate(&mut self, name: &str, file: &Path) {
        if let Some(error) = &mut self.error {
            error.message = source::locate(&error.message, name, file);
            error.stack = error.stack.as_deref().map(|stack| source::locate(stack, name, file));
        }
    }

    fn write(self, json: bool) -> Result<(), Failure> {
        if json {
            output::json(&self)?;
        } else {
            for reply in &self.replies {
                output::raw(&reply.body)?;
            }
        }
        match self.error {
            None => Ok(()),
            Some(error) => {
                output::diagnostic(&error.describe());
                Err(Failure::silent(Status::Failed))
            }
        }
    }
}

impl ErrorReport {
    /// The error for people, with name, message and stack.
    fn describe(&self) -> String {
        match &self.stack {
            // V8's stack begins with the message.
            Some(stack) if stack.starts_with(&self.message) => format!("⛔ {stack}"),
            Some(stack) => format!("⛔ {}\n{stack}", self.message),
            None if self.kind == "load" => format!("⛔ {}", self.message),
            None => format!("⛔ {} ({})", self.message, self.kind),
        }
    }
}

impl From<InvokeError> for ErrorReport {
    fn from(error: InvokeError) -> Self {
        Self {
            kind: error.kind.as_str(),
            message: error.message,
            name: error.name,
            stack: error.stack,
        }
    }
}

impl From<Reply> for ReplyReport {
    fn from(reply: Reply) -> Self {
        let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in reply.headers {
            headers.entry(name).or_default().push(value);
        }
        Self {
            headers,
            payload_base64: BASE64_STANDARD.encode(&reply.body),
            text: std::str::from_utf8(&reply.body).ok().map(str::to_owned),
            body: reply.body,
        }
    }
}
