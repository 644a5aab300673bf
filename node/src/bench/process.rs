//! Processor time and memory of processes on this machine, from `/proc`.

use std::fs;
use std::time::Duration;

/// Ticks per second of the times in `/proc/PID/stat`; fixed for programs since Linux 2.6.
const TICKS_PER_SECOND: u32 = 100;

/// Processor time that a process and its descendants have used.
#[must_use]
pub fn processor_time(process: u32) -> Duration {
    let ticks: u64 = family(process).iter().map(|member| member.ticks).sum();
    Duration::from_secs(1) * u32::try_from(ticks).unwrap_or(u32::MAX) / TICKS_PER_SECOND
}

/// How many threads of a process and its descendants have this name, which Linux cuts to 15 bytes.
#[must_use]
pub fn threads(process: u32, name: &str) -> usize {
    let tasks = family(process)
        .into_iter()
        .filter_map(|member| fs::read_dir(format!("/proc/{}/task", member.pid)).ok());
    let names = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|own| own.trim_end() == name).count()
}

/// What `/proc` tells of a process.
struct Member {
    pid: u32,
    parent: u32,
    ticks: u64,
}

/// A process and its descendants.
fn family(process: u32) -> Vec<Member> {
    let (mut family, mut others): (Vec<Member>, Vec<Member>) = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (parent, ticks) = parse_stat(&stat)?;
            Some(Member { pid, parent, ticks })
        })
        .partition(|member| member.pid == process);
    let mut next = 0;
    while let Some(pid) = family.get(next).map(|member| member.pid) {
        next += 1;
        family.extend(others.extract_if(.., |other| other.parent == pid));
    }
    family
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

/// Bytes of memory of a process, with what it shares with others in equal parts (PSS). `None` if this system does not
/// tell, or not to us.
#[must_use]
pub fn pss_bytes(process: u32) -> Option<u64> {
    parse_pss(&fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?)
}

fn parse_pss(rollup: &str) -> Option<u64> {
    kilobytes(rollup, "Pss:").map(|kilobytes| kilobytes * 1024)
}

/// Memory of this machine, in kB.
#[must_use]
pub fn memory_kilobytes() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// Bytes of memory that programs can still have on this machine.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    kilobytes(&info, "MemAvailable:").map(|kilobytes| kilobytes * 1024)
}

/// The value of a line `name   123 kB`.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
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

    #[test]
    fn threads_are_counted_by_name() -> std::io::Result<()> {
        const NAME: &str = "counted-by-test";
        let own = std::process::id();
        assert_eq!(threads(own, NAME), 0);
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (start, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name(NAME.into()).spawn(move || {
            _ = start.send(());
            _ = ended.recv();
        })?;
        assert_eq!(started.recv(), Ok(()));
        assert_eq!(threads(own, NAME), 1);
        drop(end);
        assert!(thread.join().is_ok());
        Ok(())
    }

    #[test]
    fn memory_of_a_process() {
        let rollup = "00400000-7ffe [rollup]\nRss:  900 kB\nPss:  700 kB\nPss_Dirty:  600 kB\n";
        assert_eq!(parse_pss(rollup), Some(700 * 1024));
        assert_eq!(parse_pss(""), None);
        assert!(pss_bytes(std::process::id()).is_none_or(|bytes| bytes > 100_000));
    }
}
