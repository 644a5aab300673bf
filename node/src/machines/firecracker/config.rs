//! Settings of the Firecracker driver, and what of them makes no sense.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::version::Version;
use crate::machines::MachineError;

/// Settings of a [`FirecrackerDriver`](super::FirecrackerDriver).
#[derive(Debug, Clone)]
pub struct FirecrackerConfig {
    /// The `firecracker` binary. Default `firecracker`, looked for in `PATH`.
    pub firecracker_bin: PathBuf,
    /// Puts each machine's process into a jail of its own, as production wants it. Needs root. Default none.
    pub jailer: Option<JailerConfig>,
    /// The folder with `vmlinux`, `initrd.cpio`, `rootfs.squashfs` and `image.json`.
    pub image: PathBuf,
    /// Where the machines' folders are; a [`RuntimeDir`](crate::machines::RuntimeDir), so that what a killed node leaves is
    /// swept up. With a jailer it should be on the file system of the image and of the templates, whose files are then linked
    /// and not copied.
    pub runtime_dir: PathBuf,
    /// Processors of a machine, 1 to 32. Default 1.
    pub vcpus: u8,
    /// Memory of a machine in MiB. Default 256.
    pub memory_mib: u32,
    /// Limits of a machine's root drive. Default none.
    pub rate_limiters: RateLimiters,
    /// Default none.
    pub balloon: Option<Balloon>,
    /// Pages that back a machine's memory. Default [`HugePages::Off`].
    pub huge_pages: HugePages,
    /// Hides differences between processors. Default none.
    pub cpu_template: Option<CpuTemplate>,
    /// Arguments of the agent in the machine. Default none.
    pub agent_args: Vec<String>,
    /// Environment of the agent in the machine. Default empty.
    pub agent_env: Vec<(String, String)>,
    /// Time a machine has until its agent waits for the link. Default 10 s.
    pub boot_timeout: Duration,
    /// The device whose presence says that there is KVM; Firecracker itself always opens `/dev/kvm`. Default that.
    pub kvm_device: PathBuf,
}

impl FirecrackerConfig {
    /// The defaults, with this image and this folder for machines.
    #[must_use]
    pub fn new(image: impl Into<PathBuf>, runtime_dir: impl Into<PathBuf>) -> Self {
        Self {
            firecracker_bin: "firecracker".into(),
            jailer: None,
            image: image.into(),
            runtime_dir: runtime_dir.into(),
            vcpus: 1,
            memory_mib: 256,
            rate_limiters: RateLimiters::default(),
            balloon: None,
            huge_pages: HugePages::Off,
            cpu_template: None,
            agent_args: Vec::new(),
            agent_env: Vec::new(),
            boot_timeout: Duration::from_secs(10),
            kvm_device: "/dev/kvm".into(),
        }
    }

    /// Checks what can be checked without the programs and files it names.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] names the setting, what it is and what it may be.
    pub(super) fn validate(&self) -> Result<(), MachineError> {
        if !(1..=32).contains(&self.vcpus) {
            return refuse(format!("vcpus is {}; Firecracker takes 1 to 32", self.vcpus));
        }
        if self.memory_mib < 64 {
            let size = self.memory_mib;
            return refuse(format!("memory_mib is {size}; a kernel and an agent need 64 or more"));
        }
        if self.huge_pages != HugePages::Off && !self.memory_mib.is_multiple_of(2) {
            let size = self.memory_mib;
            return refuse(format!("memory_mib is {size}; huge pages need a multiple of 2"));
        }
        if let Some(balloon) = &self.balloon
            && balloon.amount_mib >= self.memory_mib
        {
            let (amount, size) = (balloon.amount_mib, self.memory_mib);
            return refuse(format!(
                "the balloon is to take {amount} MiB of a machine of {size} MiB"
            ));
        }
        let RateLimiters { bandwidth, iops } = &self.rate_limiters;
        for (name, bucket) in [("bandwidth", bandwidth), ("iops", iops)] {
            match bucket {
                // Firecracker takes these for no limit at all, and says nothing.
                Some(bucket) if bucket.size == 0 || bucket.refill_time_ms == 0 => {
                    return refuse(format!(
                        "rate_limiters.{name} has size {} and refill_time {}; both must be more than 0",
                        bucket.size, bucket.refill_time_ms
                    ));
                }
                _ => {}
            }
        }
        self.jailer.as_ref().map_or(Ok(()), JailerConfig::validate)
    }

    /// Checks what depends on the version of Firecracker.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub(super) fn validate_for(&self, version: Version) -> Result<(), MachineError> {
        if self.huge_pages == HugePages::Transparent && version < Version::TRANSPARENT_HUGE_PAGES {
            return refuse(format!(
                "transparent huge pages need Firecracker {}, and this is {version}",
                Version::TRANSPARENT_HUGE_PAGES
            ));
        }
        Ok(())
    }
}

fn refuse(why: String) -> Result<(), MachineError> {
    Err(MachineError::Unsupported(why))
}

/// How machines' processes are jailed.
#[derive(Debug, Clone)]
pub struct JailerConfig {
    /// The `jailer` binary, of the same release as Firecracker. Default `jailer`, looked for in `PATH`.
    pub jailer_bin: PathBuf,
    /// User ids for the machines, each one's own while it lives; its group id is the same number. Nothing else on the host
    /// may use them, except for other nodes: of these, no two use one at the same time. As many machines can run at a time.
    /// Default 4,000,000 to 4,000,999.
    pub uids: RangeInclusive<u32>,
    /// The control group each machine gets. Default none.
    pub cgroup: Option<JailCgroup>,
    /// File descriptors a machine's process may have. Default 1024.
    pub max_files: u32,
}

impl Default for JailerConfig {
    fn default() -> Self {
        Self {
            jailer_bin: "jailer".into(),
            uids: 4_000_000..=4_000_999,
            cgroup: None,
            max_files: 1024,
        }
    }
}

impl JailerConfig {
    fn validate(&self) -> Result<(), MachineError> {
        if *self.uids.start() == 0 || self.uids.is_empty() {
            let (first, last) = (self.uids.start(), self.uids.end());
            return refuse(format!(
                "uids are {first} to {last}; root is none for machines, and one there must be"
            ));
        }
        if self.max_files < 64 {
            return refuse(format!("max_files is {}; Firecracker needs 64 or more", self.max_files));
        }
        let Some(cgroup) = &self.cgroup else { return Ok(()) };
        let name = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if !cgroup
            .parent
            .split('/')
            .all(|part| name(part) && part != "." && part != "..")
        {
            return refuse(format!(
                "the parent cgroup `{}` is no relative path of plain names",
                cgroup.parent
            ));
        }
        for (file, value) in &cgroup.settings {
            if !name(file) || !file.contains('.') || value.is_empty() || value.contains(['=', '\n']) {
                return refuse(format!(
                    "`{file}={value}` is no cgroup setting; one is like memory.max=300000000"
                ));
            }
        }
        Ok(())
    }
}

/// The control group (v2) of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailCgroup {
    /// Its parent, from the root of the hierarchy.
    pub parent: String,
    /// Files and what is written to them, such as `memory.max` and `300000000`. With none, no group is made.
    pub settings: BTreeMap<String, String>,
}

/// Limits of what a machine reads; both keys are those of the original's `rate_limiters`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimiters {
    /// Tokens are bytes.
    pub bandwidth: Option<TokenBucket>,
    /// Tokens are operations.
    pub iops: Option<TokenBucket>,
}

/// A bucket of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Tokens it can hold.
    pub size: u64,
    /// Milliseconds it takes to fill up.
    #[serde(rename = "refill_time")]
    pub refill_time_ms: u64,
    /// Tokens there are at first, beyond its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
}

/// Takes memory from a machine to give it back to the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Balloon {
    /// What it takes, in MiB.
    pub amount_mib: u32,
    /// Whether it gives back what the guest would otherwise have to kill for.
    pub deflate_on_oom: bool,
    /// Seconds between two reports of the guest's memory; 0 for none.
    pub stats_interval_s: u16,
}

/// Pages that back a machine's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HugePages {
    /// Those of 4 KiB.
    #[default]
    Off,
    /// The kernel merges what it can.
    Transparent,
    /// Those of 2 MiB, from the host's reserve. Their machines cannot be restored from a file, so there are no templates.
    Reserved2m,
}

/// Firecracker's own sets of processor features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are Firecracker's, after kinds of hosts")]
#[non_exhaustive]
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn takes_the_rate_limiters_of_the_original() {
        let text =
            r#"{"bandwidth":{"one_time_burst":0,"refill_time":100,"size":5},"iops":{"refill_time":10,"size":1}}"#;
        let limiters: RateLimiters = serde_json::from_str(text).unwrap();
        let bucket = |size, refill_time_ms, one_time_burst| TokenBucket {
            size,
            refill_time_ms,
            one_time_burst,
        };
        assert_eq!(limiters.bandwidth, Some(bucket(5, 100, Some(0))));
        assert_eq!(limiters.iops, Some(bucket(1, 10, None)));
        assert!(serde_json::from_str::<RateLimiters>(r#"{"ops":null}"#).is_err());
    }

    /// The error a change of the defaults makes.
    fn error(change: impl FnOnce(&mut FirecrackerConfig)) -> String {
        let mut config = FirecrackerConfig::new("/image", "/run/machines");
        config.validate().unwrap();
        config.jailer = Some(JailerConfig::default());
        config.validate().unwrap();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn names_what_makes_no_sense() {
        let empty = TokenBucket {
            size: 1,
            refill_time_ms: 0,
            one_time_burst: None,
        };
        let balloon = Balloon {
            amount_mib: 256,
            ..Balloon::default()
        };
        assert!(error(|c| c.vcpus = 33).contains("33"));
        assert!(error(|c| c.memory_mib = 1).contains("64"));
        assert!(error(|c| (c.memory_mib, c.huge_pages) = (257, HugePages::Reserved2m)).contains("257"));
        assert!(error(|c| c.rate_limiters.iops = Some(empty)).contains("rate_limiters.iops"));
        assert!(error(|c| c.balloon = Some(balloon)).contains("256 MiB"));
        let jail = |change: fn(&mut JailerConfig)| error(|c| change(c.jailer.as_mut().unwrap()));
        assert!(jail(|j| j.uids = 0..=5).contains("root"));
        #[allow(clippy::reversed_empty_ranges, reason = "that is the mistake")]
        let reversed = jail(|j| j.uids = 7..=6);
        assert!(reversed.contains("7 to 6"));
        assert!(jail(|j| j.max_files = 3).contains("max_files"));
        let group = |parent: &str, file: &str, value: &str| {
            let cgroup = JailCgroup {
                parent: parent.to_owned(),
                settings: BTreeMap::from([(file.to_owned(), value.to_owned())]),
            };
            error(|c| c.jailer.as_mut().unwrap().cgroup = Some(cgroup))
        };
        assert!(group("/nex", "memory.max", "1").contains("/nex"));
        assert!(group("nex/..", "memory.max", "1").contains("nex/.."));
        assert!(group("nex", "memory", "1").contains("memory=1"));
        assert!(group("nex", "memory.max", "1=2").contains("1=2"));
    }

    #[test]
    fn transparent_huge_pages_are_new() {
        let mut config = FirecrackerConfig::new("/image", "/run/machines");
        config.huge_pages = HugePages::Transparent;
        config.validate_for(Version::TRANSPARENT_HUGE_PAGES).unwrap();
        let old = config.validate_for(Version::new(1, 16, 1)).unwrap_err();
        assert!(old.to_string().contains("1.16.1"), "{old}");
    }
}
