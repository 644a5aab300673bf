//! What this host's QEMU can do, found out by trying: its version, whether it runs with less rights, whether KVM works.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rand::RngExt;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::args::{BARE, SANDBOX};
use crate::machines::MachineError;
use crate::machines::child::bare_command;
use crate::machines::image::GuestImage;
use crate::machines::resources::Qemu;

/// How long QEMU may take to start and end again.
const PATIENCE: Duration = Duration::from_secs(20);

/// Users without a name, each for one machine. Linux distributions leave these numbers alone.
const USERS: std::ops::Range<u32> = 0x7000_0000..0x7fff_0000;

const KVM: &str = "/dev/kvm";

/// How QEMU is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Confinement {
    /// It runs as a user of its own, which owns nothing.
    pub(super) own_user: bool,
    /// It filters its own system calls.
    pub(super) sandbox: bool,
}

/// A command that runs QEMU, and nothing else of this process.
pub(super) fn command(qemu: &Qemu, own_user: bool) -> Command {
    let mut command = bare_command(&qemu.program);
    if let Some(path) = &qemu.library_path {
        command.env("LD_LIBRARY_PATH", path);
    }
    if own_user {
        let user = rand::rng().random_range(USERS);
        // Membership in its group is what KVM is allowed by.
        let group = std::fs::metadata(KVM).map_or(user, |device| device.gid());
        command.uid(user).gid(if group == 0 { user } else { group });
    }
    command
}

/// The first line of `--version`, which tells distributions and their patches apart.
///
/// # Errors
/// [`MachineError::Missing`], [`MachineError::Spawn`], [`MachineError::Unsupported`].
pub(super) async fn version(qemu: &Qemu) -> Result<String, MachineError> {
    if !qemu.program.is_file() {
        return Err(MachineError::Missing {
            what: "QEMU",
            path: qemu.program.clone(),
            hint: "`nex preflight` fetches it".to_owned(),
        });
    }
    let mut command = command(qemu, false);
    command.arg("--version");
    let output = command.output().await.map_err(|source| MachineError::Spawn {
        program: qemu.program.clone(),
        source,
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.to_owned()),
        _ => Err(MachineError::Unsupported(format!(
            "{} --version: {}: {}",
            qemu.program.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}

/// The tightest confinement in which QEMU starts, and why there is none that is tighter.
///
/// # Errors
/// [`MachineError::Unsupported`] when it does not start at all.
pub(super) async fn confinement(
    qemu: &Qemu,
    image: &GuestImage,
) -> Result<(Confinement, Option<String>), MachineError> {
    let mut users = vec![false];
    let mut reason = None;
    if rustix::process::geteuid().is_root() {
        match unreadable(image) {
            None => users.insert(0, true),
            Some(path) => reason = Some(format!("only root can read {path}")),
        }
    }
    for own_user in users {
        for sandbox in [true, false] {
            match starts(qemu, own_user, sandbox).await {
                Ok(()) => return Ok((Confinement { own_user, sandbox }, reason)),
                Err(error) => _ = reason.get_or_insert(error),
            }
        }
    }
    Err(MachineError::Unsupported(format!(
        "{} does not start: {}",
        qemu.program.display(),
        reason.unwrap_or_default()
    )))
}

/// A file of the image that other users cannot read.
fn unreadable(image: &GuestImage) -> Option<String> {
    let others_read = |path: &Path| path.metadata().is_ok_and(|metadata| metadata.mode() & 0o004 != 0);
    [image.vmlinux(), image.initrd(), image.rootfs()]
        .iter()
        .find(|path| !others_read(path))
        .map(|path| path.display().to_string())
}

/// Starts a QEMU without any machine and ends it again.
async fn starts(qemu: &Qemu, own_user: bool, sandbox: bool) -> Result<(), String> {
    let mut command = command(qemu, own_user);
    command
        .args(["-machine", "none", "-qmp", "stdio"])
        .args(BARE)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    if sandbox {
        command.args(SANDBOX);
    }
    let run = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // If it has ended before, that is told below.
            _ = stdin
                .write_all(b"{\"execute\": \"qmp_capabilities\"} {\"execute\": \"quit\"}\n")
                .await;
            let output = child.wait_with_output().await;
            drop(stdin);
            return output;
        }
        child.wait_with_output().await
    };
    match tokio::time::timeout(PATIENCE, run).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it did not end within {PATIENCE:?}")),
    }
}

/// Whether machines may open KVM. That it then works is another question.
///
/// # Errors
/// What stands in the way.
pub(super) fn kvm_can_be_opened(own_user: bool) -> Result<(), String> {
    let device = File::options().read(true).write(true).open(KVM);
    let device = device.and_then(|device| device.metadata());
    let device = device.map_err(|error| format!("{KVM}: {error}"))?;
    let mode = device.mode();
    let for_all = mode & 0o006 == 0o006;
    let for_its_group = mode & 0o060 == 0o060 && device.gid() != 0;
    if own_user && !for_all && !for_its_group {
        return Err(format!(
            "only root may open {KVM}, and QEMU runs as a user of its own: `chgrp kvm {KVM} && chmod 660 {KVM}` lets \
             machines, and no other process of these users, open it"
        ));
    }
    Ok(())
}
