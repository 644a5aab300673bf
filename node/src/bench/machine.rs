//! Describes the machine and the build, so that figures can be judged later.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;
use time::OffsetDateTime;

use super::process::memory_kilobytes;

/// What figures were measured on, by what and when. What this system does not tell is `None`.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// When the description was made, in UTC.
    pub date: String,
    /// The command line that measured.
    pub command: String,
    /// Version of nex.
    pub nex_version: &'static str,
    /// Commit of the checkout that the program was built in, if it still is there; `, with changes` if it has some.
    pub commit: Option<String>,
    /// Whether the program is optimised; else the figures mean nothing.
    pub release_build: bool,
    /// Version of V8 in this program.
    pub v8_version: &'static str,
    /// Version of the NATS server, if one took part.
    pub nats_server_version: Option<String>,
    /// Model of the processors.
    pub processor: Option<String>,
    /// Processors this program may use.
    pub processors: usize,
    /// Frequency governor of the processors.
    pub governor: Option<String>,
    /// Memory of the machine.
    pub memory_mib: Option<u64>,
    /// Name and release of the system's kernel.
    pub kernel: Option<String>,
    /// Load averages over 1, 5 and 15 minutes, before.
    pub load_average_before: Option<[f64; 3]>,
    /// The same, afterwards.
    pub load_average_after: Option<[f64; 3]>,
}

impl Machine {
    /// This machine, now. `program` is what stands in front of this process's arguments in the command line, which is told
    /// without passwords and the like.
    #[must_use]
    pub fn describe(program: &str) -> Self {
        let arguments = without_secrets(
            std::env::args_os()
                .skip(1)
                .map(|word| word.to_string_lossy().into_owned()),
        );
        Self {
            date: date(),
            command: [vec![program.to_owned()], arguments].concat().join(" "),
            nex_version: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            release_build: !cfg!(debug_assertions),
            v8_version: nex_runtime::v8::version(),
            nats_server_version: None,
            processor: processor(),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            memory_mib: memory_kilobytes().map(|kilobytes| kilobytes / 1024),
            kernel: read("/proc/sys/kernel/osrelease").map(|release| format!("{} {release}", std::env::consts::OS)),
            load_average_before: load_average(),
            load_average_after: None,
        }
    }

    /// To be called after the measurements: notes what load there is now.
    pub fn finish(&mut self) {
        self.load_average_after = load_average();
    }

    /// The same for people: names and values, without what is not known.
    #[must_use]
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let profile = if self.release_build {
            "release profile"
        } else {
            "dev profile: figures mean nothing"
        };
        let processor = self.processor.as_deref().unwrap_or("unknown");
        let facts = [
            ("Date", Some(self.date.clone())),
            ("Command", Some(format!("`{}`", self.command))),
            ("Commit", self.commit.clone()),
            ("Build", Some(format!("nex {}, {profile}", self.nex_version))),
            ("V8", Some(self.v8_version.to_owned())),
            ("nats-server", self.nats_server_version.clone()),
            ("Processor", Some(format!("{} × {processor}", self.processors))),
            ("Frequency governor", self.governor.clone()),
            ("Memory", self.memory_mib.map(|mib| format!("{mib} MiB"))),
            ("Kernel", self.kernel.clone()),
            ("Load average before", self.load_average_before.map(show_load)),
            ("Load average after", self.load_average_after.map(show_load)),
        ];
        facts
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}

/// Arguments as they may be shown to others: a user name may be a token, and a URL may have either in it.
fn without_secrets(arguments: impl Iterator<Item = String>) -> Vec<String> {
    const SECRET: [&str; 2] = ["--password", "--user"];
    const HIDDEN: &str = "…";
    let mut secret_is_next = false;
    let hide = |word: String| {
        if std::mem::take(&mut secret_is_next) {
            return HIDDEN.to_owned();
        }
        secret_is_next = SECRET.contains(&word.as_str());
        if let Some((flag, _)) = word.split_once('=').filter(|(flag, _)| SECRET.contains(flag)) {
            return format!("{flag}={HIDDEN}");
        }
        // Several servers may stand in one word, separated by commas.
        let parts = word.split(',').map(|part| match part.split_once("://") {
            Some((scheme, rest)) => match rest.rsplit_once('@') {
                Some((_, host)) => format!("{scheme}://{HIDDEN}@{host}"),
                None => part.to_owned(),
            },
            None => part.to_owned(),
        });
        parts.collect::<Vec<_>>().join(",")
    };
    arguments.map(hide).collect()
}

/// Version that a nats-server binary says it is.
#[must_use]
pub fn nats_server_version(binary: &Path) -> Option<String> {
    let version = output(binary, &["--version"])?;
    let version = version.trim_start_matches("nats-server:").trim();
    Some(version.trim_start_matches('v').to_owned())
}

/// Load averages over 1, 5 and 15 minutes.
#[must_use]
pub fn load_average() -> Option<[f64; 3]> {
    let text = read("/proc/loadavg")?;
    let mut numbers = text.split_whitespace().map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some([next()?, next()?, next()?])
}

fn show_load(load: [f64; 3]) -> String {
    load.map(|value| value.to_string()).join(" ")
}

fn date() -> String {
    let now = OffsetDateTime::now_utc();
    let (date, time) = (now.date(), now.time());
    format!("{date} {:02}:{:02} UTC", time.hour(), time.minute())
}

fn commit() -> Option<String> {
    let checkout = checkout()?;
    let git = |arguments: &[&str]| {
        let folder = checkout.to_str()?;
        output("git", &[&["-C", folder], arguments].concat())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(if changed {
        format!("{commit}, with changes")
    } else {
        commit
    })
}

/// The checkout of this project that this program lies in, as `target/release/nex` does.
fn checkout() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    program
        .ancestors()
        .find(|folder| folder.join("node/src/bench/machine.rs").exists())
        .map(Path::to_path_buf)
}

fn processor() -> Option<String> {
    let info = read("/proc/cpuinfo")?;
    info.lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|(_, model)| model.to_owned())
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// What a program prints; a description is not worth failing for.
fn output(program: impl AsRef<Path>, arguments: &[&str]) -> Option<String> {
    Command::new(program.as_ref())
        .args(arguments)
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_told() {
        let shown = |words: &str| without_secrets(words.split(' ').map(str::to_owned)).join(" ");
        for (given, expected) in [
            ("bench warm --rate 5", "bench warm --rate 5"),
            ("--user ada --password s3cret bench", "--user … --password … bench"),
            ("--password=s3=cret --user=token -s a", "--password=… --user=… -s a"),
            (
                "-s nats://a:b@h:4222,tls://t@k,l bench",
                "-s nats://…@h:4222,tls://…@k,l bench",
            ),
            ("--server=nats://token@h", "--server=nats://…@h"),
        ] {
            assert_eq!(shown(given), expected);
        }
    }

    #[test]
    fn what_is_known_is_told() {
        let mut machine = Machine::describe("nex");
        machine.finish();
        let facts = machine.facts();
        let fact = |name| facts.iter().find(|(fact, _)| *fact == name).map(|(_, value)| value);
        assert!(fact("V8").is_some_and(|version| version.contains('.')));
        assert!(fact("Command").is_some_and(|command| command.starts_with("`nex")));
        assert!(fact("nats-server").is_none());
        machine.nats_server_version = Some("2.1".to_owned());
        assert!(machine.facts().contains(&("nats-server", "2.1".to_owned())));
    }
}
