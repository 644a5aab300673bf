//! What each driver needs, and whether it is there.

use std::fmt;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;

use nex_agent::confine::Probe;
use serde::Serialize;

use crate::agents::find_agent_bin;
use crate::cli::failure::Failure;
use crate::machines::DriverKind;
use crate::machines::image::{GuestImage, file_sha256, find_init_bin};
use crate::machines::resources::Resources;

/// The oldest Firecracker that the driver speaks to, as (major, minor).
const OLDEST_FIRECRACKER: (u16, u16) = (1, 14);

const FIRECRACKER_RELEASES: &str = "https://github.com/firecracker-microvm/firecracker/releases";

const KVM: &str = "/dev/kvm";

/// One thing that a driver needs.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) driver: DriverKind,
    pub(super) what: String,
    pub(super) state: State,
    pub(super) path: Option<PathBuf>,
    /// What is to be known: why it is missing and what to do, or what there is.
    pub(super) details: Vec<String>,
    /// What installing it is called, if it can be installed.
    pub(super) item: Option<Item>,
}

/// Whether it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Satisfied,
    Missing,
}

/// What can be installed, in the order in which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Item {
    Qemu,
    Kernel,
    Image,
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "qemu",
            Self::Kernel => "kernel",
            Self::Image => "guest image",
        })
    }
}

impl Check {
    fn satisfied(driver: DriverKind, what: &str, path: Option<PathBuf>) -> Self {
        Self {
            driver,
            what: what.to_owned(),
            state: State::Satisfied,
            path,
            details: Vec::new(),
            item: None,
        }
    }

    fn missing(driver: DriverKind, what: &str, reason: impl fmt::Display) -> Self {
        Self {
            state: State::Missing,
            details: vec![reason.to_string()],
            ..Self::satisfied(driver, what, None)
        }
    }

    fn detail(mut self, detail: impl fmt::Display) -> Self {
        self.details.push(detail.to_string());
        self
    }

    fn installed_by(mut self, item: Item) -> Self {
        self.item = Some(item);
        self
    }

    pub(super) fn is_satisfied(&self) -> bool {
        self.state == State::Satisfied
    }
}

/// Where things are looked for.
#[derive(Debug)]
pub(super) struct Places<'a> {
    pub(super) resources: &'a Resources,
    /// Folders of programs, of the configuration.
    pub(super) bin_path: &'a [PathBuf],
}

impl Places<'_> {
    /// Looks for all that these drivers need; `found` is told of each as it is looked at.
    pub(super) fn all(
        &self,
        drivers: &[DriverKind],
        found: &mut dyn FnMut(&Check) -> Result<(), Failure>,
    ) -> Result<Vec<Check>, Failure> {
        let mut checks: Vec<Check> = Vec::new();
        let mut add = |check: Check| -> Result<(), Failure> {
            found(&check)?;
            checks.push(check);
            Ok(())
        };
        for driver in drivers {
            match driver {
                DriverKind::Process => {
                    add(agent(*driver))?;
                    add(confinement(*driver))?;
                }
                DriverKind::Qemu => {
                    add(qemu(*driver, self))?;
                    add(acceleration(*driver))?;
                    guest(*driver, self.resources, &mut add)?;
                }
                DriverKind::Firecracker => {
                    add(firecracker(*driver, self))?;
                    add(kvm(*driver))?;
                    guest(*driver, self.resources, &mut add)?;
                }
                DriverKind::InProcess => add(Check::satisfied(*driver, "nex itself", std::env::current_exe().ok()))?,
            }
        }
        Ok(checks)
    }
}

fn agent(driver: DriverKind) -> Check {
    match find_agent_bin() {
        Ok(path) => Check::satisfied(driver, "nex-agent", Some(path)),
        Err(error) => Check::missing(driver, "nex-agent", error),
    }
}

/// The agent itself tells which layers of confinement this host gives.
fn confinement(driver: DriverKind) -> Check {
    const WHAT: &str = "confinement";
    let Ok(agent) = find_agent_bin() else {
        return Check::missing(driver, WHAT, "without nex-agent it cannot be told what this host gives");
    };
    let output = match Command::new(&agent).arg("--probe-confinement").output() {
        Ok(output) => output,
        Err(error) => return Check::missing(driver, WHAT, format_args!("{}: {error}", agent.display())),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().next().unwrap_or_default();
        return Check::missing(
            driver,
            WHAT,
            format_args!("nex-agent ended with {}: {said}", output.status),
        );
    }
    let Ok(probe) = serde_json::from_slice::<Probe>(&output.stdout) else {
        return Check::missing(
            driver,
            WHAT,
            "nex-agent did not say what this host gives; is it of this version?",
        );
    };
    let mut check = Check::satisfied(driver, WHAT, None);
    for (layer, report) in &probe.layers {
        if report.available {
            check = check.detail(format_args!("{layer}: available"));
        } else {
            let reason = report.reason.as_deref().unwrap_or_default();
            check.state = State::Missing;
            check = check.detail(format_args!("{layer}: not available on this host: {reason}"));
        }
    }
    check
}

fn qemu(driver: DriverKind, places: &Places<'_>) -> Check {
    const WHAT: &str = "qemu-system-x86_64";
    if std::env::consts::ARCH != "x86_64" {
        return Check::missing(
            driver,
            WHAT,
            "its machine `microvm` runs x86_64 guests, and this is no such machine",
        );
    }
    match places.resources.qemu(places.bin_path) {
        Ok((qemu, version)) => {
            Check::satisfied(driver, WHAT, Some(qemu.program)).detail(format_args!("version {version}"))
        }
        Err(reason) => Check::missing(driver, WHAT, reason),
    }
    .installed_by(Item::Qemu)
}

/// QEMU gets along without KVM.
fn acceleration(driver: DriverKind) -> Check {
    let check = Check::satisfied(driver, "acceleration", None);
    match open_kvm() {
        Ok(()) => check.detail("KVM: /dev/kvm can be opened; whether it works, a node finds out when it starts"),
        Err(error) => check.detail(format_args!(
            "emulation, which is slower, because KVM cannot be used: {error}"
        )),
    }
}

fn kvm(driver: DriverKind) -> Check {
    match open_kvm() {
        Ok(()) => Check::satisfied(driver, "KVM", Some(PathBuf::from(KVM))),
        Err(error) => Check::missing(driver, "KVM", error).detail(
            "Firecracker needs it: a processor with virtualisation, the kernel module kvm_intel or kvm_amd, and the right \
             to read and write the device",
        ),
    }
}

fn open_kvm() -> Result<(), String> {
    match OpenOptions::new().read(true).write(true).open(KVM) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{KVM}: {error}")),
    }
}

/// Firecracker and its jailer, which have to be of the same version.
fn firecracker(driver: DriverKind, places: &Places<'_>) -> Check {
    const WHAT: &str = "firecracker and jailer";
    let program = |name: &str| -> Result<(PathBuf, String), String> {
        let found = places.resources.find_program(name, places.bin_path);
        let path = found
            .into_iter()
            .next()
            .ok_or_else(|| format!("{name} was not found"))?;
        let version = version_of(&path)?;
        Ok((path, version))
    };
    let checked = program("firecracker").and_then(|(path, version)| {
        let (jailer, of_jailer) = program("jailer")?;
        if of_jailer != version {
            return Err(format!(
                "{} is version {version}, {} is {of_jailer}",
                path.display(),
                jailer.display()
            ));
        }
        let (major, minor) = OLDEST_FIRECRACKER;
        if parse_version(&version).is_none_or(|version| version < OLDEST_FIRECRACKER) {
            return Err(format!(
                "{} is version {version}, older than {major}.{minor}",
                path.display()
            ));
        }
        Ok((path, version))
    });
    match checked {
        Ok((path, version)) => Check::satisfied(driver, WHAT, Some(path)).detail(format_args!("version {version}")),
        Err(reason) => Check::missing(driver, WHAT, reason).detail(format_args!(
            "get a release from {FIRECRACKER_RELEASES} and put both programs into {}, or into a folder of PATH",
            places.resources.programs().display()
        )),
    }
}

/// The version that a program of Firecracker says it is: `Firecracker v1.14.2`.
fn version_of(program: &Path) -> Result<String, String> {
    let output = Command::new(program).arg("--version").output();
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next().unwrap_or_default();
    let version = line.split(' ').find_map(|word| word.strip_prefix('v'));
    version
        .map(str::to_owned)
        .ok_or_else(|| format!("{} does not say its version: {line}", program.display()))
}

fn parse_version(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split(['.', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What virtual machines boot, and what that is made of.
fn guest(
    driver: DriverKind,
    resources: &Resources,
    add: &mut dyn FnMut(Check) -> Result<(), Failure>,
) -> Result<(), Failure> {
    add(agent(driver))?;
    add(match find_init_bin() {
        Ok(path) => Check::satisfied(driver, "nex-init", Some(path)),
        Err(error) => Check::missing(driver, "nex-init", error),
    })?;
    let image = image(driver, resources);
    add(kernel(driver, resources, image.is_satisfied()))?;
    add(image)
}

/// The kernel goes into the image; where that was made with another one, none is missed.
fn kernel(driver: DriverKind, resources: &Resources, is_in_image: bool) -> Check {
    const WHAT: &str = "kernel";
    let folder = resources.kernel();
    if folder.join("boot").is_dir() {
        Check::satisfied(driver, WHAT, Some(folder))
    } else if is_in_image {
        Check::satisfied(driver, WHAT, None).detail("the guest image has one")
    } else {
        Check::missing(driver, WHAT, format_args!("there is none in {}", folder.display()))
    }
    .installed_by(Item::Kernel)
}

/// The image has to be whole, and made of the programs that are beside this one.
fn image(driver: DriverKind, resources: &Resources) -> Check {
    const WHAT: &str = "guest image";
    let folder = resources.image();
    let opened = GuestImage::open(&folder);
    let image = match opened {
        Ok(image) => image,
        Err(error) => return Check::missing(driver, WHAT, error).installed_by(Item::Image),
    };
    let manifest = image.manifest();
    let (agent, init) = (find_agent_bin().ok(), find_init_bin().ok());
    let parts = [
        ("nex-agent", agent, &manifest.agent_sha256),
        ("nex-init", init, &manifest.init_sha256),
    ];
    for (name, program, hash) in parts {
        // One that is missing is a check of its own.
        let Some(program) = program else { continue };
        match file_sha256(&program) {
            Ok(found) if found == *hash => {}
            Ok(_) => {
                let check = Check::missing(
                    driver,
                    WHAT,
                    format_args!(
                        "{} was made with another {name} than {}",
                        folder.display(),
                        program.display()
                    ),
                );
                if manifest.customised.is_empty() {
                    return check.installed_by(Item::Image);
                }
                return check.detail(format_args!(
                    "run `nex rootfs` again with what was added to it: {}",
                    manifest.customised.join(", ")
                ));
            }
            Err(error) => return Check::missing(driver, WHAT, error),
        }
    }
    let check = Check::satisfied(driver, WHAT, Some(folder)).detail(format_args!("Linux {}", manifest.kernel_version));
    // Installing it anew would drop what the user added.
    if manifest.customised.is_empty() {
        check.installed_by(Item::Image)
    } else {
        check.detail(format_args!("with {}", manifest.customised.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_firecracker_are_read() {
        assert_eq!(parse_version("1.14.2"), Some((1, 14)));
        assert_eq!(parse_version("1.17.0-dev"), Some((1, 17)));
        assert_eq!(parse_version("one"), None);
    }

    #[test]
    fn items_are_installed_before_what_is_made_of_them() {
        let mut items = vec![Item::Image, Item::Qemu, Item::Kernel];
        items.sort();
        assert_eq!(items, [Item::Qemu, Item::Kernel, Item::Image]);
    }
}
