//! How long machines take to start: confined processes with and without their layers, virtual machines booted and
//! restored, beside what their kernel alone takes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nex_node::machines::{Confinement, Machine, MachineDriver, ProcessConfig, ProcessDriver, StartReport, Templating};

use super::lab::{self, Ground, Lab};
use super::{Scale, Times, millis, section};
use crate::report::Table;

const MIB: f64 = (1 << 20) as f64;

/// What the agent can be confined by, as its option `--confine` has it.
const LAYERS_WITHOUT_NAMESPACES: [&str; 3] = ["landlock", "seccomp", "rlimits"];

/// Measures one driver and reports in Markdown.
pub(super) async fn run(lab: &Lab, ground: &Ground, scale: Scale) -> Result<String> {
    match ground.driver.templating() {
        Some(templating) => virtual_machines(lab, ground, templating, scale).await,
        None => processes(ground, scale).await,
    }
}

/// Starts a machine and ends it again.
async fn start(driver: &dyn MachineDriver, id: &str) -> Result<StartReport> {
    let machine = driver.boot(id).await?;
    let report = machine.start();
    end(&*machine).await;
    Ok(report)
}

async fn end(machine: &dyn Machine) {
    machine.kill();
    machine.wait().await;
}

async fn processes(ground: &Ground, scale: Scale) -> Result<String> {
    let all = ProcessDriver::new(lab::process()?).await?;
    let layers: Vec<String> = all
        .in_force()
        .into_iter()
        .filter(|layer| LAYERS_WITHOUT_NAMESPACES.contains(&layer.as_str()))
        .collect();
    let few = ProcessDriver::new(ProcessConfig {
        // The driver takes all layers or none; the agent takes what it is told.
        confinement: Confinement::None,
        agent_args: vec![format!("--confine={}", layers.join(",")).into()],
        ..lab::process()?
    });
    let few = few.await?;
    let none = ProcessDriver::unconfined(lab::process()?);
    let mut kinds = [
        ("no confinement", none, Times::default()),
        ("without namespaces", few, Times::default()),
        ("all layers", all, Times::default()),
    ];
    for round in 0..=scale.processes {
        for (label, driver, times) in &mut kinds {
            eprintln!("{}, start {round} of {}: {label}", ground.kind, scale.processes);
            let report = start(driver, &format!("start-{round}")).await?;
            // The first reads the binary from the disk.
            if round > 0 {
                times.push(report.elapsed);
            }
        }
    }
    let mut table = Table::new(&[
        "start, until the agent waits",
        "p50 ms",
        "p95 ms",
        "max ms",
        "of unconfined",
    ]);
    let unconfined = kinds[0].2.median();
    for (label, _, times) in &kinds {
        row(&mut table, label, times, unconfined);
    }
    let about = format!("{} starts of each kind, in turn.", scale.processes);
    Ok(section(&format!("Start, {}", ground.kind), &about, table))
}

fn row(table: &mut Table, label: &str, times: &Times, base: f64) {
    table.row(&[
        label.to_owned(),
        millis(times.median()),
        millis(times.quantile(0.95)),
        millis(times.max()),
        format!("{:.2}", times.median() / base),
    ]);
}

async fn virtual_machines(lab: &Lab, ground: &Ground, templating: &dyn Templating, scale: Scale) -> Result<String> {
    let driver = &*ground.driver;
    eprintln!("{}: taking a template", ground.kind);
    let machine = driver.boot("template").await?;
    let template = lab.templates().join(templating.template_key());
    fs::create_dir_all(&template)?;
    let began = Instant::now();
    templating.take(machine, &template).await?;
    let taken = began.elapsed();

    let began = Instant::now();
    end(&*templating.restore(&template, "first").await?).await;
    let first = began.elapsed();
    let (mut kernel, mut booted, mut restored) = (Times::default(), Times::default(), Times::default());
    for round in 0..scale.boots {
        eprintln!("{}, start {} of {}", ground.kind, round + 1, scale.boots);
        let report = start(driver, &format!("boot-{round}")).await?;
        kernel.push(report.up.context("the driver does not tell when the kernel was up")?);
        booted.push(report.elapsed);
        for number in 0..scale.restores {
            let machine = templating.restore(&template, &format!("copy-{round}-{number}")).await?;
            restored.push(machine.start().elapsed);
            end(&*machine).await;
        }
    }
    let mut table = Table::new(&["start", "p50 ms", "p95 ms", "max ms", "of the kernel's boot"]);
    let base = kernel.median();
    row(&mut table, "the kernel is up: bare boot", &kernel, base);
    row(&mut table, "booted, until the agent waits", &booted, base);
    row(&mut table, "restored, until the agent waits", &restored, base);
    let about = format!(
        "{}. {} boots, and {} restores after each. The template takes {:.1} MiB on disk; taking it took {:.0} ms beside \
         the boot. The first restore of a node, which reads and checks the template, took {:.0} ms.",
        ground.about,
        scale.boots,
        scale.restores,
        allocated(&template)? as f64 / MIB,
        as_millis(taken),
        as_millis(first)
    );
    Ok(section(&format!("Start, {}", ground.kind), &about, table))
}

fn as_millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Bytes that the files of a folder take on disk; holes take none.
fn allocated(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        bytes += entry?.metadata()?.blocks() * 512;
    }
    Ok(bytes)
}
