//! `nex bench`: measures a running node, machines of its own, or the engine in this process, and says how sure the figures
//! are.
//!
//! What is measured how is defined in `BENCH.md` of this crate; the measuring itself is in [`crate::bench`].

mod args;
mod cold;
mod context;
mod density;
mod deploy;
mod in_process;
mod machines;
mod on_node;
mod page;
mod progress;
mod report;
mod stage;
mod steady;
mod terminal;

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use nex_runtime::v8::V8Config;
use tempfile::NamedTempFile;

pub(super) use self::args::Command;
use self::args::{Common, Place, Plan};
use self::context::Context;
use self::in_process::InProcess;
use self::on_node::OnNode;
use self::progress::Progress;
use self::report::{Benchmark, Report, Settings};
use self::stage::Stage;
use super::args::{Global, read_file};
use super::failure::Failure;
use super::up::Signals;
use super::up::muscle::Muscle;
use super::{invoke, output, source};
use crate::bench::{Expected, Machine, Payload, Requests};
use crate::config::NodeConfig;
use crate::limits::LimitSet;
use crate::machines::DriverKind;

/// Runs the command.
pub(super) async fn run(global: &Global, command: Command) -> Result<(), Failure> {
    let Some(plan) = command.plan()? else {
        return density::answer_probe(&global.namespace).await;
    };
    // From here on a signal is a reason to clean up, not to end at once.
    let mut signals = Signals::listen()?;
    let html = plan.common.html.as_deref().map(Page::create).transpose()?;
    let own = match &plan.common.function {
        Some(path) => Some(own_function(global, path).await?),
        None => None,
    };
    let mut context = Context {
        repeats: plan.common.repeats.get(),
        warm_up: plan.common.warm_up,
        timeout: plan.common.reply_timeout,
        payload: payload(&plan.common)?,
        own,
        namespace: global.namespace.clone(),
        progress: Progress::none(),
    };
    context.progress = Progress::new(plan.steps(&context));

    let report = match plan.common.place() {
        Place::Node => on_node(global, &context, &plan, &mut signals).await,
        Place::Engine => tokio::select! {
            report = in_process(&context, &plan) => report,
            signal = signals.next() => Err(ended(signal)),
        },
        Place::Machines(driver) => in_machines(global, &context, &plan, driver, &mut signals).await,
    };
    context.progress.finish();
    let report = report?;

    if let Some(html) = html {
        html.write(&page::render(&report))?;
    }
    if plan.common.output.json {
        output::json(&report)?;
    } else {
        terminal::write(&report)?;
    }
    match report.failures() {
        failures if failures.total() > 0 => Err(Failure::failed(format_args!("calls have failed: {failures}"))),
        _ => Ok(()),
    }
}

async fn in_process(context: &Context, plan: &Plan) -> Result<Report, Failure> {
    let mut environment = Machine::describe("nex");
    let stage = || InProcess::new(V8Config::default(), &context.namespace);
    let mut benchmarks = Vec::new();
    if let Some(cold) = &plan.cold {
        benchmarks.push(cold.in_process(context).await?);
    }
    if let Some(warm) = &plan.warm {
        benchmarks.push(warm.run(context, &stage()?).await?);
    }
    if let Some(throughput) = &plan.throughput {
        benchmarks.push(throughput.run(context, &stage()?).await?);
    }
    if let Some(density) = &plan.density {
        benchmarks.push(density.in_process(context).await?);
    }
    if let Some(deploy) = &plan.deploy {
        benchmarks.push(deploy.run(context, &stage()?, false).await?);
    }
    environment.finish();
    Ok(Report {
        settings: settings(context, plan, None),
        machines: None,
        environment,
        benchmarks,
    })
}

/// Measures machines that are started as those of a node, and ends them.
async fn in_machines(
    global: &Global,
    context: &Context,
    plan: &Plan,
    driver: DriverKind,
    signals: &mut Signals,
) -> Result<Report, Failure> {
    let config = NodeConfig {
        machine_driver: driver,
        ..NodeConfig::default()
    };
    let muscle = tokio::select! {
        muscle = Muscle::start(global, &config, &plan.common.resource_dir) => muscle?,
        signal = signals.next() => return Err(ended(signal)),
    };
    let stage = InProcess::over(muscle.engine(), &context.namespace);
    let report = tokio::select! {
        report = measure_machines(context, plan, &stage, &config) => report,
        signal = signals.next() => Err(ended(signal)),
    };
    drop(stage);
    muscle.shutdown().await;
    report
}

async fn measure_machines(
    context: &Context,
    plan: &Plan,
    stage: &InProcess,
    config: &NodeConfig,
) -> Result<Report, Failure> {
    let mut environment = Machine::describe("nex");
    let limit = Some(config.default_limits().hibernate_after);
    let benchmarks = measure_agents(context, plan, stage, "the agents' links", limit, false).await?;
    environment.finish();
    Ok(Report {
        settings: settings(context, plan, None),
        machines: Some(stage.machines()),
        environment,
        benchmarks,
    })
}

/// Measures a node, and leaves nothing there, however it ends.
async fn on_node(global: &Global, context: &Context, plan: &Plan, signals: &mut Signals) -> Result<Report, Failure> {
    let stage = OnNode::open(global, plan.common.node.as_deref()).await?;
    let measured = tokio::select! {
        measured = measure_node(context, plan, &stage) => measured,
        signal = signals.next() => Err(ended(signal)),
    };
    context.progress.doing("removing what was deployed");
    let cleaned = tokio::select! {
        cleaned = stage.clean_up() => cleaned,
        signal = signals.next() => Err(Failure::failed(format_args!(
            "ended by {signal} before all was removed: functions and object store {}* may be left",
            stage.run()
        ))),
    };
    match (measured, cleaned) {
        (Ok(report), cleaned) => cleaned.map(|()| report),
        (Err(failure), Ok(())) => Err(failure),
        (Err(failure), Err(left)) => {
            let left = left.message.unwrap_or_default();
            Err(failure.map(|failure| format!("{failure}\n{left}")))
        }
    }
}

fn ended(signal: &str) -> Failure {
    Failure::failed(format_args!("ended by {signal} before it had a result"))
}

async fn measure_node(context: &Context, plan: &Plan, stage: &OnNode) -> Result<Report, Failure> {
    let (size, most) = (context.payload.size(), stage.max_payload());
    if size > most {
        return Err(Failure::usage(format_args!(
            "a payload of {size} bytes is more than the {most} that the NATS server takes"
        )));
    }
    let mut environment = Machine::describe("nex");
    environment.nats_server_version = Some(stage.server_version());
    let benchmarks = measure_agents(context, plan, stage, "NATS", stage.hibernate_after(), true).await?;
    let machines = stage.machines().await?;
    environment.finish();
    Ok(Report {
        settings: settings(context, plan, Some(stage)),
        machines: Some(machines),
        environment,
        benchmarks,
    })
}

/// Measures functions in agents, called over this, that hibernate after `limit` unless told otherwise.
async fn measure_agents(
    context: &Context,
    plan: &Plan,
    stage: &impl Stage,
    over: &str,
    limit: Option<Duration>,
    uploads: bool,
) -> Result<Vec<Benchmark>, Failure> {
    let mut benchmarks = Vec::new();
    if let Some(cold) = &plan.cold {
        benchmarks.push(cold.in_agents(context, stage, over).await?);
    }
    if let Some(warm) = &plan.warm {
        benchmarks.push(warm.run(context, stage).await?);
    }
    if let Some(throughput) = &plan.throughput {
        benchmarks.push(throughput.run(context, stage).await?);
    }
    if let Some(density) = &plan.density {
        benchmarks.push(density.in_agents(context, stage, limit).await?);
    }
    if let Some(deploy) = &plan.deploy {
        benchmarks.push(deploy.run(context, stage, uploads).await?);
    }
    Ok(benchmarks)
}

fn settings(context: &Context, plan: &Plan, stage: Option<&OnNode>) -> Settings {
    let common = &plan.common;
    let checked = match context.payload.expected {
        Expected::Echo => "every reply compared with its request, byte for byte",
        Expected::Exactly(_) => "every reply compared with the one expected, byte for byte",
        Expected::Anything => "replies checked for errors only",
    };
    let function = match &common.function {
        Some(path) => format!("{}; {checked}", path.display()),
        None => format!("built-in echo; {checked}"),
    };
    let (target, driver) = match (common.place(), stage) {
        (Place::Node, stage) => ("node", stage.and_then(OnNode::driver)),
        (Place::Engine, _) => ("in_process", Some(DriverKind::InProcess.as_str())),
        (Place::Machines(driver), _) => ("machines", Some(driver.as_str())),
    };
    Settings {
        target,
        driver: driver.map(str::to_owned),
        node_id: stage.map(|stage| stage.node().node_id.clone()),
        node_version: stage.map(|stage| stage.node().version.clone()),
        function,
        payload_bytes: context.payload.size(),
        repeats: context.repeats,
        reply_timeout_ms: u64::try_from(context.timeout.as_millis()).unwrap_or(u64::MAX),
        warm_up_s: context.warm_up.as_secs_f64(),
    }
}

/// Reads the operator's function, and sees that it starts.
async fn own_function(global: &Global, path: &Path) -> Result<Bytes, Failure> {
    let source: Bytes = read_file("function", path)?.into();
    let workload_type = source::type_or(None, path)?;
    let name = source::name_or(None, path)?;
    invoke::check(global, &name, &workload_type, LimitSet::default(), source.clone())
        .await
        .map_err(|error| Failure::failed(source::locate(&error.to_string(), &name, path)))?;
    Ok(source)
}

fn payload(common: &Common) -> Result<Payload, Failure> {
    let requests = match (&common.payload, &common.payload_file) {
        (Some(text), _) => Requests::Fixed(text.clone().into()),
        (None, Some(path)) => Requests::Fixed(read_file("payload", path)?.into()),
        (None, None) => Requests::Unique(common.payload_size),
    };
    let expected = match (&common.function, &common.expect) {
        (None, _) => Expected::Echo,
        (Some(_), Some(text)) => Expected::Exactly(text.clone().into()),
        (Some(_), None) => Expected::Anything,
    };
    Ok(Payload { requests, expected })
}

/// The HTML page of a run: made before anything is measured, so that a run is not lost to a path that cannot be written,
/// and there only once it is complete.
#[derive(Debug)]
struct Page {
    file: NamedTempFile,
    path: PathBuf,
}

impl Page {
    fn create(path: &Path) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::usage(format_args!("cannot write the page {}: {error}", path.display()))
        };
        if path.is_dir() {
            return Err(failed(&"it is a directory"));
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if !folder.is_dir() {
            return Err(failed(&format_args!("there is no directory {}", folder.display())));
        }
        let file = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(|error| failed(&error))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    fn write(mut self, page: &str) -> Result<(), Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::failed(format_args!("cannot write the page {}: {error}", self.path.display()))
        };
        self.file.write_all(page.as_bytes()).map_err(|error| failed(&error))?;
        self.file.persist(&self.path).map_err(|error| failed(&error))?;
        Ok(())
    }
}
