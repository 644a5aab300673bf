//! All attacks of some files, one after another, on one bench.

use anyhow::{Context as _, Result};
use nex_runtime::engine::{Engine as _, Limits};
use tokio::sync::Mutex;

use crate::attack::{Attack, call, source_of};
use crate::bench::Bench;
use crate::host::{fixture, host, spec};
use crate::report::{publish, say};

/// Beginning of the names of the attacks to run, for those who look into one.
const ONLY: &str = "NEX_HOSTILE_ONLY";

/// How the agents run V8.
#[derive(Debug, Clone, Copy)]
pub enum Agents {
    /// With our flags.
    OfProduction,
    /// With the loop unrolling that V8 has on by default and we turn off.
    WithDefaultFlags,
    /// With V8's own test functions.
    WithNatives,
}

impl Agents {
    pub fn environment(self) -> Vec<(String, String)> {
        let flags = match self {
            Self::OfProduction => return Vec::new(),
            Self::WithDefaultFlags => "--turboshaft-loop-unrolling",
            Self::WithNatives => "--allow-natives-syntax",
        };
        vec![("NEX_V8_FLAGS".to_owned(), flags.to_owned())]
    }
}

/// Runs the attacks; fails with all that went wrong, at the end.
pub async fn run(suite: &str, agents: Agents, files: &[&'static str]) {
    // One bench at a time: they would measure each other.
    static TURN: Mutex<()> = Mutex::const_new(());
    let _turn = TURN.lock().await;

    let mut bench = Bench::start(agents).await.unwrap();
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    for &file in files {
        for name in names(&bench, file).await.unwrap() {
            let attack = Attack::new(file, &name);
            if !chosen(&attack) {
                continue;
            }
            match attack.run(&mut bench).await {
                Ok(row) => {
                    say(&row.to_string());
                    rows.push(row);
                }
                Err(error) => {
                    let failure = format!("{}: {error:#}", attack.title());
                    say(&failure);
                    failures.push(failure);
                    // The next attack gets a bench in order.
                    bench = Bench::start(agents).await.unwrap();
                }
            }
        }
    }
    publish(suite, &bench.idle, &rows);
    assert!(
        failures.is_empty(),
        "{} attacks:\n{}",
        failures.len(),
        failures.join("\n")
    );
    bench.pool.shutdown().await;
}

fn chosen(attack: &Attack) -> bool {
    let only = std::env::var(ONLY).unwrap_or_default();
    attack.title().starts_with(&only)
}

/// The attacks of a file, in its order.
async fn names(bench: &Bench, file: &str) -> Result<Vec<String>> {
    let source = fixture(file);
    if file.starts_with("top_level") {
        let cases = source.lines().filter_map(|line| line.trim().strip_prefix("case \""));
        return Ok(cases
            .filter_map(|case| Some(case.split_once('"')?.0.to_owned()))
            .collect());
    }
    let function = bench
        .pool
        .load(spec("names", source_of(file), Limits::default()), host().0);
    let reply = call(&function.await?, "names").await?;
    serde_json::from_slice(&reply.body).with_context(|| format!("the names in {file}: {:?}", reply.body))
}
