//! Describes the machine and the build, so that figures can be judged later; and reads processor time of processes.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Ticks per second of the times in `/proc/PID/stat`; fixed for programs since Linux 2.6.
const TICKS_PER_SECOND: u32 = 100;

/// What stands above the figures.
pub(crate) fn describe() -> Vec<(&'static str, String)> {
    let build = if cfg!(debug_assertions) {
        "dev profile: figures mean nothing"
    } else {
        "release profile"
    };
    vec![
        ("Date", output("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
        ("Command", command_line()),
        ("Commit", commit()),
        ("Build", format!("{build}, {}", output("rustc", &["--version"]))),
        ("Processor", processor()),
        ("Memory", memory()),
        ("Kernel", file("/proc/sys/kernel/osrelease")),
    ]
}

/// Version of a nats-server.
pub(crate) fn nats_server_version(binary: &Path) -> String {
    output(binary, &["--version"])
}

/// Load averages over 1, 5 and 15 minutes.
pub(crate) fn load_average() -> String {
    let text = file("/proc/loadavg");
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Processor time that a process and its descendants have used.
pub(crate) fn processor_time(process: u32) -> Duration {
    let stats: Vec<(u32, u32, u64)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (parent, ticks) = parse_stat(&stat)?;
            Some((pid, parent, ticks))
        })
        .collect();
    let mut family = vec![process];
    let mut next = 0;
    while let Some(&member) = family.get(next) {
        next += 1;
        family.extend(
            stats
                .iter()
                .filter(|(_, parent, _)| *parent == member)
                .map(|(pid, ..)| *pid),
        );
    }
    let ticks: u64 = stats
        .iter()
        .filter(|(pid, ..)| family.contains(pid))
        .map(|(.., ticks)| ticks)
        .sum();
    Duration::from_secs(1) * u32::try_from(ticks).unwrap_or(u32::MAX) / TICKS_PER_SECOND
}

/// Parent and user plus system time, from `/proc/PID/stat`: fields 4, 14 and 15, counted from the command, which stands
/// in parentheses and may contain anything.
fn parse_stat(stat: &str) -> Option<(u32, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let parent = u32::try_from(number(1)?).ok()?;
    Some((parent, number(11)? + number(12)?))
}

fn command_line() -> String {
    let profile = if cfg!(debug_assertions) { "" } else { " --release" };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    format!("`cargo run{profile} -p nex-benches -- {}`", arguments.join(" "))
}

fn commit() -> String {
    let commit = output("git", &["rev-parse", "--short=12", "HEAD"]);
    match output("git", &["status", "--porcelain", "--untracked-files=no"]).as_str() {
        "" => commit,
        _ => format!("{commit}, with changes"),
    }
}

fn processor() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info = file("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, model)| model);
    format!("{cores} × {model}")
}

fn memory() -> String {
    let info = file("/proc/meminfo");
    let kilobytes: Option<u64> = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    kilobytes.map_or_else(|| "unknown".to_owned(), |kilobytes| format!("{} MiB", kilobytes / 1024))
}

fn file(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// What a program prints; a description is not worth failing for.
fn output(program: impl AsRef<Path>, arguments: &[&str]) -> String {
    Command::new(program.as_ref())
        .args(arguments)
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map_or_else(
            || "unknown".to_owned(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_of_a_process_with_an_awkward_name() {
        let stat = "42 (a) b (c) S 7 42 42 0 -1 4194304 100 0 0 0 31 11 0 0 20 0 9 0 100";
        assert_eq!(parse_stat(stat), Some((7, 42)));
        assert_eq!(parse_stat("nonsense"), None);
    }
}
