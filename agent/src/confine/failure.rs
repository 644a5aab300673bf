//! What the processes behind the launcher tell it: one message of fixed size through a pipe. They run where nothing may
//! be allocated, so a message says by numbers which step failed, on which file, and of what.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;

/// What is done to get inside, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Watch,
    OpenTree,
    Ids,
    PrivateMounts,
    NewRoot,
    MakeFolder,
    MakeFile,
    Mount,
    Restrict,
    MountProc,
    ChangeRoot,
    LeaveOldRoot,
    ReadOnly,
    HostName,
    Fork,
    Privileges,
    Execute,
}

impl Step {
    const ALL: [Self; 17] = [
        Self::Watch,
        Self::OpenTree,
        Self::Ids,
        Self::PrivateMounts,
        Self::NewRoot,
        Self::MakeFolder,
        Self::MakeFile,
        Self::Mount,
        Self::Restrict,
        Self::MountProc,
        Self::ChangeRoot,
        Self::LeaveOldRoot,
        Self::ReadOnly,
        Self::HostName,
        Self::Fork,
        Self::Privileges,
        Self::Execute,
    ];

    fn text(self) -> &'static str {
        match self {
            Self::Watch => "tie the process to its launcher",
            Self::OpenTree => "open for mounting",
            Self::Ids => "change user and group",
            Self::PrivateMounts => "make mounts private",
            Self::NewRoot => "mount an empty root",
            Self::MakeFolder => "make a folder in the new root",
            Self::MakeFile => "make a file in the new root",
            Self::Mount => "mount into the new root",
            Self::Restrict => "restrict the mount",
            Self::MountProc => "mount /proc (it must be whole outside, as in no container that masks parts of it)",
            Self::ChangeRoot => "change to the new root",
            Self::LeaveOldRoot => "leave the old root",
            Self::ReadOnly => "make the new root read-only",
            Self::HostName => "set the host name",
            Self::Fork => "start the agent",
            Self::Privileges => "give up privileges",
            Self::Execute => "execute",
        }
    }
}

/// A step that failed, where nothing may be allocated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    pub(super) step: Step,
    pub(super) errno: Errno,
    /// Position of the path in the plan.
    pub(super) file: Option<usize>,
}

impl Failure {
    pub(super) fn at(step: Step) -> impl FnOnce(Errno) -> Self {
        move |errno| Self {
            step,
            errno,
            file: None,
        }
    }

    pub(super) fn on(step: Step, file: usize) -> impl FnOnce(Errno) -> Self {
        move |errno| Self {
            step,
            errno,
            file: Some(file),
        }
    }
}

/// A failure with its words.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) step: String,
    pub(super) source: io::Error,
}

/// What the launcher hears.
#[derive(Debug, Clone, Copy)]
pub(super) enum Message {
    Failed(Failure),
    /// The agent's wait status.
    Ended(i32),
}

const LENGTH: usize = 12;
const ENDED: u32 = u32::MAX;
const NO_FILE: u32 = u32::MAX;

impl Message {
    pub(super) fn send(self, pipe: impl AsFd) {
        let (kind, value, file) = match self {
            Self::Failed(failure) => (
                failure.step as u32,
                failure.errno.raw_os_error(),
                failure
                    .file
                    .and_then(|file| u32::try_from(file).ok())
                    .unwrap_or(NO_FILE),
            ),
            Self::Ended(status) => (ENDED, status, NO_FILE),
        };
        let mut bytes = [0; LENGTH];
        let words = [kind, value.cast_unsigned(), file];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        // If nobody listens, nobody is left to tell.
        _ = rustix::io::write(pipe, &bytes);
    }

    /// Waits for one; none if the processes that could send it are gone.
    pub(super) fn receive(pipe: impl AsFd) -> io::Result<Option<Self>> {
        let mut bytes = [0; LENGTH];
        // So few bytes are written and read in one piece.
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&pipe, &mut bytes[..]))?;
        if read < LENGTH {
            return Ok(None);
        }
        let word = |index: usize| {
            let at = 4 * index;
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (kind, value, file) = (word(0), word(1).cast_signed(), word(2));
        if kind == ENDED {
            return Ok(Some(Self::Ended(value)));
        }
        let step = Step::ALL.into_iter().find(|step| *step as u32 == kind);
        Ok(step.map(|step| {
            Self::Failed(Failure {
                step,
                errno: Errno::from_raw_os_error(value),
                file: (file != NO_FILE).then_some(file as usize),
            })
        }))
    }
}

impl Failure {
    /// Puts it into words; `path` is what [`Failure::file`] stands for.
    pub(super) fn describe(self, path: Option<&str>) -> Failed {
        let step = self.step.text();
        Failed {
            step: path.map_or_else(|| step.to_owned(), |path| format!("{step} {path}")),
            source: self.errno.into(),
        }
    }
}

/// Ends the process at once: no destructors, no `atexit` handlers.
pub(crate) fn exit(code: i32) -> ! {
    #[allow(unsafe_code, reason = "std has no exit that skips atexit handlers")]
    mod c {
        // SAFETY: the declaration is the one of POSIX; the function takes any number and touches no memory of ours.
        unsafe extern "C" {
            pub(super) safe fn _exit(code: i32) -> !;
        }
    }
    c::_exit(code)
}
