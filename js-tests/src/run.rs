//! Runs one case.

use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nex_runtime::engine::{Engine, Limits};
use nex_runtime::harness::{Harness, HarnessFunction};
use nex_runtime::logs::LogLine;
use nex_runtime::v8::{V8Config, V8Engine};

use crate::case::{Case, ExpectedLog};
use crate::outcome;
use crate::world::World;

/// Longest wait for the end of a call, or for a log line.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the case in a file.
///
/// # Errors
/// What it did that it should not, in words for people.
pub fn run(path: &Path) -> Result<(), String> {
    let case = Case::read(path).map_err(|error| error.to_string())?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?
        .block_on(async {
            tokio::time::timeout(PATIENCE, run_case(&case, path))
                .await
                .unwrap_or_else(|_| Err(format!("no end within {PATIENCE:?}")))
        })
}

async fn run_case(case: &Case, path: &Path) -> Result<(), String> {
    let world = World::new().map_err(|error| error.to_string())?;
    let (sink, logs) = mpsc::channel();
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let loaded = Harness::with_engine(engine()?)
        .services(Arc::clone(&world.services))
        .name(name.unwrap_or_default())
        .vars(case.vars.clone())
        .limits(limits(case))
        .log_sink(Arc::new(move |line| {
            // Nobody looks at lines after the last expected one.
            _ = sink.send(line);
        }))
        .load(case.source.clone())
        .await;
    let function = match (loaded, case.load_errors.as_slice()) {
        (Ok(function), []) => function,
        (Err(error), []) => return Err(format!("does not load: {error}")),
        (Ok(_), _) => return Err("loads, which it should not".to_owned()),
        (Err(error), expected) => {
            return outcome::contains_all("error", &error.to_string(), expected);
        }
    };
    call_all(case, &function).await?;
    compare_logs(&case.logs, &logs)
}

fn limits(case: &Case) -> Limits {
    let default = Limits::default();
    Limits {
        wall_time: case.wall_time.unwrap_or(default.wall_time),
        ..default
    }
}

async fn call_all(case: &Case, function: &HarnessFunction) -> Result<(), String> {
    for (index, call) in case.calls.iter().enumerate() {
        let answers = function.stream(call.trigger.clone()).await;
        outcome::compare(call, &answers).map_err(|problem| format!("call {}: {problem}", index + 1))?;
    }
    Ok(())
}

/// Log lines may come after the reply, from what the function left running; hence the wait.
fn compare_logs(expected: &[ExpectedLog], logs: &Receiver<LogLine>) -> Result<(), String> {
    if expected.is_empty() {
        return Ok(());
    }
    for expected in expected {
        let line = logs
            .recv_timeout(PATIENCE)
            .map_err(|_| format!("no log line where {expected:?} is expected"))?;
        outcome::log(&line, expected)?;
    }
    match logs.try_recv() {
        Ok(line) => Err(format!("a log line too many: {line:?}")),
        Err(_) => Ok(()),
    }
}

/// One engine for all cases: what one function does must not matter to another.
fn engine() -> Result<Arc<dyn Engine>, String> {
    static ENGINE: OnceLock<Result<V8Engine, String>> = OnceLock::new();
    let engine = ENGINE
        .get_or_init(|| V8Engine::new(V8Config::default()).map_err(|error| error.to_string()))
        .clone()?;
    Ok(Arc::new(engine))
}
