//! Hosts whose disk is full: nothing is lost, nothing half-written stays, and the error names the place.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use nex_node::machines::{
    DriverKind, Machine, MachineDriver, MachineError, MachineSource, ProcessConfig, ProcessDriver, RuntimeDir,
    Templating,
};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit};

use crate::escape_probe::escape_probe;
use crate::lab::{is_alone, run_alone, within};

/// What a template takes, and what the disks of these tests have.
const TEMPLATE_BYTES: usize = 4 << 20;
const DISK: &str = "size=1m,nr_inodes=16";
const FILE_BYTES: u64 = 1 << 20;

/// A file system with next to no room, which only root can have.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(options: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount(
            c"none",
            folder.path(),
            c"tmpfs",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .unwrap();
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        _ = rustix::mount::unmount(self.path(), UnmountFlags::DETACH);
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn names_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Confined processes with templates that are large files and mean nothing: what is kept of a machine is the driver's
/// affair, where and when it is kept is not.
#[derive(Debug)]
struct Copying(ProcessDriver);

impl MachineDriver for Copying {
    fn kind(&self) -> DriverKind {
        DriverKind::Process
    }

    fn boot(&self, id: &str) -> BoxFuture<'_, Result<Arc<dyn Machine>, MachineError>> {
        self.0.boot(id)
    }

    fn templating(&self) -> Option<&dyn Templating> {
        Some(self)
    }
}

impl Templating for Copying {
    fn template_key(&self) -> &str {
        "00c0ffee"
    }

    fn take<'a>(&'a self, machine: Arc<dyn Machine>, folder: &'a Path) -> BoxFuture<'a, Result<(), MachineError>> {
        async move {
            machine.kill();
            machine.wait().await;
            let path = folder.join("memory");
            std::fs::write(&path, vec![1; TEMPLATE_BYTES]).map_err(|source| MachineError::File { path, source })
        }
        .boxed()
    }

    fn restore<'a>(&'a self, template: &'a Path, id: &'a str) -> BoxFuture<'a, Result<Arc<dyn Machine>, MachineError>> {
        async move {
            let path = template.join("memory");
            let memory = std::fs::read(&path).map_err(|source| MachineError::File { path, source })?;
            if memory.len() < TEMPLATE_BYTES {
                return Err(MachineError::Start("half a template".to_owned()));
            }
            self.0.boot(id).await
        }
        .boxed()
    }
}

/// Machines with templates in a folder that has no room for them, or has.
async fn machines_from(templates: &Path, has_room: bool) {
    let driver = ProcessDriver::new(ProcessConfig::new(escape_probe())).await.unwrap();
    let source = MachineSource::new(Arc::new(Copying(driver)), Some(templates.to_owned()));
    for id in ["a", "b"] {
        let machine = within(source.start(id)).await.unwrap();
        assert!(machine.pid() > 0);
        machine.kill();
        within(machine.wait()).await;
        let left = names_in(templates);
        let expected: &[PathBuf] = if has_room { &[templates.join("00c0ffee")] } else { &[] };
        assert_eq!(left, expected, "no half of a template");
    }
}

#[tokio::test]
async fn without_room_for_templates_every_machine_is_booted() {
    // Where there is room, there is a template.
    machines_from(tempfile::tempdir().unwrap().path(), true).await;
    if is_root() {
        machines_from(SmallDisk::new(DISK).path(), false).await;
    }
    // The same for everybody: files of this process can have no more than so many bytes.
    let probe = escape_probe();
    run_alone("full_disk::in_a_process_that_can_write_no_large_file", |command| {
        command.env("NEX_ESCAPE_PROBE_BIN", probe);
    });
}

#[tokio::test]
async fn in_a_process_that_can_write_no_large_file() {
    if !is_alone() {
        return;
    }
    ignore_oversized_files();
    let limit = Rlimit {
        current: Some(FILE_BYTES),
        maximum: Some(FILE_BYTES),
    };
    rustix::process::setrlimit(Resource::Fsize, limit).unwrap();
    machines_from(tempfile::tempdir().unwrap().path(), false).await;
}

#[allow(unsafe_code, reason = "std has no signal handlers")]
fn ignore_oversized_files() {
    // SAFETY: no handler is installed, and no memory touched.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

#[tokio::test]
async fn a_template_that_was_cut_off_is_thrown_away() {
    let templates = tempfile::tempdir().unwrap();
    let cut = templates.path().join("00c0ffee");
    std::fs::create_dir(&cut).unwrap();
    std::fs::write(cut.join("memory"), [1; 10]).unwrap();
    let driver = ProcessDriver::new(ProcessConfig::new(escape_probe())).await.unwrap();
    let source = MachineSource::new(Arc::new(Copying(driver)), Some(templates.path().to_owned()));
    let machine = within(source.start("a")).await.unwrap();
    assert!(!cut.exists());
    machine.kill();
    within(machine.wait()).await;
    let machine = within(source.start("b")).await.unwrap();
    assert_eq!(
        std::fs::metadata(cut.join("memory")).unwrap().len(),
        TEMPLATE_BYTES as u64
    );
    machine.kill();
    within(machine.wait()).await;
}

#[tokio::test]
async fn half_a_template_of_a_node_that_was_killed_is_removed() {
    let templates = tempfile::tempdir().unwrap();
    let mut ended = std::process::Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    let left = templates.path().join(format!(".partial-{}-x", ended.id()));
    let in_work = templates.path().join(format!(".partial-{}-x", std::process::id()));
    for folder in [&left, &in_work] {
        std::fs::create_dir(folder).unwrap();
        std::fs::write(folder.join("memory"), "half").unwrap();
    }
    let driver = ProcessDriver::new(ProcessConfig::new(escape_probe())).await.unwrap();
    let source = MachineSource::new(Arc::new(Copying(driver)), Some(templates.path().to_owned()));
    let machine = within(source.start("a")).await.unwrap();
    assert!(!left.exists() && in_work.exists());
    machine.kill();
    within(machine.wait()).await;
}

#[test]
fn a_runtime_folder_that_cannot_be_made_is_named_and_leaves_nothing() {
    if !is_root() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
        refuses(folder.path(), "Permission denied");
        return;
    }
    // With room for no folder at all, for the folder and not for its lock, and for all of it.
    for (inodes, room) in [(1, false), (2, false), (3, true)] {
        let disk = SmallDisk::new(&format!("nr_inodes={inodes}"));
        if room {
            let claimed = RuntimeDir::claim(disk.path()).unwrap();
            assert!(claimed.path().join("lock").exists());
        } else {
            refuses(disk.path(), "No space left on device");
        }
        assert_eq!(names_in(disk.path()), Vec::<PathBuf>::new());
    }
}

fn refuses(base: &Path, why: &str) {
    let error = RuntimeDir::claim(base).unwrap_err().to_string();
    assert!(
        error.contains(&base.display().to_string()) && error.contains(why),
        "{error}"
    );
}
