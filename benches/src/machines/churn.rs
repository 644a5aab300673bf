//! Machines started and ended again, many times: how long a round takes, and whether anything is left on the host.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use nex_node::machines::{MachineSource, Port};

use super::lab::{Ground, Lab};
use super::{Times, millis, section};
use crate::report::Table;

/// How long what ends may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Rounds before what there is is counted: the first ones start threads that stay, and read the template.
const WARM_UP: usize = 2;

/// Measures all drivers. Returns the report in Markdown, and what is left of whom.
pub(super) async fn run(lab: &Lab, grounds: &[Ground], rounds: usize) -> Result<(String, Vec<String>)> {
    let mut table = Table::new(&[
        "",
        "rounds",
        "p50 ms",
        "p95 ms",
        "processes left",
        "descriptors",
        "files",
        "control groups",
    ]);
    let mut left = Vec::new();
    for ground in grounds {
        let label = ground.label();
        let source = ground.source(lab);
        let mut seen = BTreeSet::new();
        for number in 0..WARM_UP {
            round(&source, &format!("warm-up-{number}"), &mut seen).await?;
        }
        let before = Remains::of(ground, &seen)?;
        let mut times = Times::default();
        for number in 0..rounds {
            if number % 20 == 0 {
                eprintln!("churn, {label}: {number} of {rounds}");
            }
            times.push(round(&source, &format!("round-{number}"), &mut seen).await?);
        }
        let began = Instant::now();
        let mut remains = Remains::of(ground, &seen)?.beyond(&before);
        while !remains.is_nothing() && began.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(50)).await;
            remains = Remains::of(ground, &seen)?.beyond(&before);
        }
        let Remains {
            processes,
            descriptors,
            files,
            groups,
        } = remains;
        table.row(&[
            label.clone(),
            rounds.to_string(),
            millis(times.median()),
            millis(times.quantile(0.95)),
            processes.to_string(),
            descriptors.to_string(),
            files.to_string(),
            groups.to_string(),
        ]);
        if !remains.is_nothing() {
            left.push(format!("{label}: {remains:?}"));
        }
    }
    let about = "A round is the start of a machine until its agent waits, its link opened, the machine killed, and all of it \
                 gone. What is left is counted afterwards: processes of any round, and this process's descriptors, files in \
                 its runtime folder and control groups beyond what there was before.";
    Ok((section("Machines created and destroyed", about, table), left))
}

async fn round(source: &MachineSource, id: &str, seen: &mut BTreeSet<Birth>) -> Result<Duration> {
    let began = Instant::now();
    let machine = source.start(id).await?;
    let stream = machine.connect(Port::Link).await?;
    let started = began.elapsed();
    seen.extend(descendants());
    let began = Instant::now();
    machine.kill();
    machine.wait().await;
    drop((stream, machine));
    Ok(started + began.elapsed())
}

/// A process that cannot be taken for a later one of the same number: with the time of its start in clock ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Birth {
    pid: u32,
    at: u64,
}

/// What there is on this host of machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Remains {
    processes: usize,
    descriptors: usize,
    files: usize,
    groups: usize,
}

impl Remains {
    /// `seen` are processes of machines, whoever is their parent by now.
    fn of(ground: &Ground, seen: &BTreeSet<Birth>) -> Result<Self> {
        let alive = |birth: &&Birth| stat(birth.pid).is_some_and(|(now, _)| now == **birth);
        Ok(Self {
            processes: seen.iter().filter(alive).count(),
            descriptors: fs::read_dir("/proc/self/fd")?.count(),
            files: fs::read_dir(ground.runtime.path())?.count(),
            groups: groups(Path::new("/sys/fs/cgroup")),
        })
    }

    fn beyond(self, before: &Self) -> Self {
        Self {
            processes: self.processes.saturating_sub(before.processes),
            descriptors: self.descriptors.saturating_sub(before.descriptors),
            files: self.files.saturating_sub(before.files),
            groups: self.groups.saturating_sub(before.groups),
        }
    }

    fn is_nothing(self) -> bool {
        let Self {
            processes,
            descriptors,
            files,
            groups,
        } = self;
        processes + descriptors + files + groups == 0
    }
}

/// All processes that descend from this one.
fn descendants() -> BTreeSet<Birth> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut others: Vec<(Birth, u32)> = pids.filter_map(stat).collect();
    let mut found = BTreeSet::new();
    let mut parents = vec![std::process::id()];
    while let Some(parent) = parents.pop() {
        for (birth, _) in others.extract_if(.., |(_, of)| *of == parent) {
            parents.push(birth.pid);
            found.insert(birth);
        }
    }
    found
}

/// A process and its parent.
fn stat(pid: u32) -> Option<(Birth, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may itself contain anything. Fields 4 and 22 are the parent and the start.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let at = fields.nth(17)?.parse().ok()?;
    Some((Birth { pid, at }, parent))
}

/// Control groups that this process has made for machines, in any hierarchy.
fn groups(folder: &Path) -> usize {
    let own = format!("nex-{}-", std::process::id());
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders
        .map(|entry| {
            let is_own = entry.file_name().to_string_lossy().starts_with(&own);
            usize::from(is_own) + groups(&entry.path())
        })
        .sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn descendants_are_found_and_known_to_be_gone() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let found = descendants();
        let birth = *found.iter().find(|birth| birth.pid == child.id()).unwrap();
        assert_eq!(stat(birth.pid), Some((birth, std::process::id())));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(stat(birth.pid).is_none_or(|(now, _)| now != birth));
    }
}
