//! Runs every case as a test of its own, with the output and the arguments of Rust's test harness.
#![allow(
    clippy::print_stdout,
    reason = "this is the test harness, whose output goes to standard output"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use nex_js_tests::{discover, run};

/// What of the command line matters here; other arguments of Rust's test harness are accepted and ignored, so that
/// they can be given to all tests of the workspace at once.
#[derive(Default)]
struct Arguments {
    filters: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    list: bool,
    ignored: bool,
    threads: Option<usize>,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut parsed = Self::default();
        while let Some(argument) = arguments.next() {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
                _ => (argument, None),
            };
            let mut value = || value.clone().or_else(|| arguments.next());
            match name.as_str() {
                "--exact" => parsed.exact = true,
                "--list" => parsed.list = true,
                "--ignored" => parsed.ignored = true,
                "--skip" => parsed.skip.extend(value()),
                "--test-threads" => parsed.threads = value().and_then(|value| value.parse().ok()),
                "--format" | "--color" | "--logfile" | "--shuffle-seed" | "-Z" => _ = value(),
                _ if name.starts_with('-') => {}
                _ => parsed.filters.push(name),
            }
        }
        parsed
    }

    fn selects(&self, name: &str) -> bool {
        let matches = |filter: &String| {
            if self.exact {
                name == filter
            } else {
                name.contains(filter.as_str())
            }
        };
        // No case is ever ignored.
        !self.ignored && (self.filters.is_empty() || self.filters.iter().any(matches)) && !self.skip.iter().any(matches)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse(std::env::args().skip(1));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let found = match discover(&root) {
        Ok(found) => found,
        Err(error) => {
            println!("cannot read {}: {error}", root.display());
            return ExitCode::FAILURE;
        }
    };
    let name = |path: &Path| {
        let relative = path.strip_prefix(&root).unwrap_or(path);
        relative.to_string_lossy().replace(std::path::MAIN_SEPARATOR, "/")
    };
    let (selected, others): (Vec<_>, Vec<_>) = found
        .into_iter()
        .map(|path| (name(&path), path))
        .partition(|(name, _)| arguments.selects(name));
    if arguments.list {
        selected.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if report(&selected, others.len(), arguments.threads) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs the cases and prints the results; whether all is well.
fn report(cases: &[(String, PathBuf)], filtered_out: usize, threads: Option<usize>) -> bool {
    println!("\nrunning {} tests", cases.len());
    let start = Instant::now();
    let failures = run_all(cases, threads);
    if !failures.is_empty() {
        println!("\nfailures:\n");
        for (name, problem) in &failures {
            println!("---- {name} ----\n{problem}\n");
        }
        println!("failures:");
        failures.iter().for_each(|(name, _)| println!("    {name}"));
    }
    println!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; {filtered_out} filtered out; finished in {:.2}s\n",
        if failures.is_empty() { "ok" } else { "FAILED" },
        cases.len() - failures.len(),
        failures.len(),
        start.elapsed().as_secs_f64()
    );
    failures.is_empty()
}

/// Runs the cases, as many at once as there are cores, and prints a line for each.
fn run_all(cases: &[(String, PathBuf)], threads: Option<usize>) -> Vec<(String, String)> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let threads = threads
        .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
        .unwrap_or(1);
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, cases.len().max(1)) {
            scope.spawn(|| {
                while let Some((name, path)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run(path);
                    println!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
                    if let Err(problem) = outcome {
                        let mut failures = failures.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                        failures.push((name.clone(), problem));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    failures.sort();
    failures
}
