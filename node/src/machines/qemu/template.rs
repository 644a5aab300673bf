//! Templates on disk: the memory of a machine, the state of its devices, and what belongs to them.
//!
//! A template is read once, checked, and kept in a sealed file in memory, which all its copies map. So none of them can
//! change it for the others, not even from a hypervisor that was broken into, and a damaged one is found out before a
//! machine runs on it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::memory;
use crate::machines::MachineError;

const MANIFEST: &str = "template.json";
const MEMORY: &str = "memory";
const STATE: &str = "state";

/// Largest state of devices, in bytes; it is some 50 KiB.
const MAX_STATE: u64 = 16 << 20;

/// Rates of time-stamp counters that are taken for the same: measurements differ, and so do processors of one kind.
const TSC_TOLERANCE: f64 = 0.001;

/// What a template says of itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    /// Of the driver that took it.
    key: String,
    /// What the guest was told, if it is an emulated one.
    tsc_khz: Option<u32>,
    memory_sha256: String,
    state_sha256: String,
}

/// A template that has been read.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) tsc_khz: Option<u32>,
    /// Sealed.
    pub(super) memory: OwnedFd,
    state: Vec<u8>,
    /// By which a change on disk is noticed.
    identity: Identity,
}

/// What the files of a template are, as far as the file system tells.
type Identity = [(u64, u64, i64, i64); 3];

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> MachineError {
    let path = path.to_owned();
    move |source| MachineError::File { path, source }
}

fn unfit(folder: &Path, reason: impl std::fmt::Display) -> MachineError {
    MachineError::Start(format!("the template {}: {reason}", folder.display()))
}

fn identity(folder: &Path) -> io::Result<Identity> {
    let of = |name: &str| {
        let metadata = std::fs::metadata(folder.join(name))?;
        io::Result::Ok((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
    };
    Ok([of(MANIFEST)?, of(MEMORY)?, of(STATE)?])
}

/// Writes a template. Blocks.
///
/// # Errors
/// [`MachineError::File`]
pub(super) fn write(
    folder: &Path,
    key: &str,
    tsc_khz: Option<u32>,
    memory: OwnedFd,
    state: OwnedFd,
) -> Result<(), MachineError> {
    let path = folder.join(MEMORY);
    let copied = File::create_new(&path).and_then(|to| memory::copy(&File::from(memory), &to));
    let memory_hash = copied.map_err(file_error(&path))?;
    let path = folder.join(STATE);
    let state = contents(File::from(state)).map_err(file_error(&path))?;
    std::fs::write(&path, &state).map_err(file_error(&path))?;
    let manifest = Manifest {
        key: key.to_owned(),
        tsc_khz,
        memory_sha256: HEXLOWER.encode(&memory_hash),
        state_sha256: HEXLOWER.encode(&Sha256::digest(&state)),
    };
    let path = folder.join(MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::from);
    text.and_then(|text| std::fs::write(&path, text))
        .map_err(file_error(&path))
}

/// All of a file from its beginning, wherever it was written last.
fn contents(file: File) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len();
    if len > MAX_STATE {
        return Err(io::Error::other(format!("{len} bytes are more than {MAX_STATE}")));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

impl Template {
    /// Reads a template and checks that it is undamaged and this driver's. Blocks.
    ///
    /// # Errors
    /// [`MachineError`]
    fn read(folder: &Path, key: &str, tsc_khz: Option<u32>) -> Result<Self, MachineError> {
        let identity = identity(folder).map_err(file_error(folder))?;
        let path = folder.join(MANIFEST);
        let text = std::fs::read(&path).map_err(file_error(&path))?;
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| unfit(folder, error))?;
        if manifest.key != key {
            return Err(unfit(
                folder,
                format_args!("it belongs to {}, not to {key}", manifest.key),
            ));
        }
        if !alike(manifest.tsc_khz, tsc_khz) {
            let reason = format!(
                "its clock runs at {} kHz, this host's at {} kHz",
                manifest.tsc_khz.unwrap_or_default(),
                tsc_khz.unwrap_or_default()
            );
            return Err(unfit(folder, reason));
        }
        let path = folder.join(STATE);
        let mut state = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_STATE).read_to_end(&mut state))
            .map_err(file_error(&path))?;
        if HEXLOWER.encode(&Sha256::digest(&state)) != manifest.state_sha256 {
            return Err(unfit(folder, format_args!("{STATE} is damaged")));
        }
        let path = folder.join(MEMORY);
        let read = || {
            let file = File::open(&path)?;
            let copy = File::from(memory::anonymous(0)?);
            let hash = memory::copy(&file, &copy)?;
            let copy = OwnedFd::from(copy);
            memory::seal(&copy)?;
            Ok((copy, hash))
        };
        let (memory, hash) = read().map_err(file_error(&path))?;
        if HEXLOWER.encode(&hash) != manifest.memory_sha256 {
            return Err(unfit(folder, format_args!("{MEMORY} is damaged")));
        }
        Ok(Self {
            tsc_khz: manifest.tsc_khz,
            memory,
            state,
            identity,
        })
    }

    /// The state of the devices as a file of its own, to be read by one machine.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn state(&self) -> io::Result<OwnedFd> {
        let file = File::from(memory::anonymous(0)?);
        file.write_all_at(&self.state, 0)?;
        Ok(file.into())
    }

    /// Another descriptor of the memory.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn memory(&self) -> io::Result<OwnedFd> {
        self.memory.as_fd().try_clone_to_owned()
    }
}

fn alike(one: Option<u32>, other: Option<u32>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => f64::from(one.abs_diff(other)) <= f64::from(one) * TSC_TOLERANCE,
        _ => false,
    }
}

/// The template that was read last.
#[derive(Debug, Default)]
pub(super) struct Cache(tokio::sync::Mutex<Option<(PathBuf, Arc<Template>)>>);

impl Cache {
    /// Reads a template, unless it is the one that was read last and has not changed since.
    ///
    /// # Errors
    /// [`MachineError`]
    pub(super) async fn read(
        &self,
        folder: &Path,
        key: &str,
        tsc_khz: Option<u32>,
    ) -> Result<Arc<Template>, MachineError> {
        // One reads, the others wait for it.
        let mut last = self.0.lock().await;
        if let Some((path, template)) = &*last
            && path == folder
            && identity(folder).is_ok_and(|identity| identity == template.identity)
        {
            return Ok(Arc::clone(template));
        }
        let (path, key) = (folder.to_owned(), key.to_owned());
        let read = tokio::task::spawn_blocking(move || Template::read(&path, &key, tsc_khz));
        let template = read.await.map_err(|error| MachineError::Start(error.to_string()))??;
        let template = Arc::new(template);
        *last = Some((folder.to_owned(), Arc::clone(&template)));
        Ok(template)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    fn template() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let memory = File::from(memory::anonymous(8 << 20).unwrap());
        memory.write_all_at(b"memory", 1 << 20).unwrap();
        let state = File::from(memory::anonymous(0).unwrap());
        state.write_all_at(b"state", 0).unwrap();
        write(folder.path(), "key", Some(2_000_000), memory.into(), state.into()).unwrap();
        folder
    }

    fn refused(folder: &Path, key: &str, tsc_khz: u32) -> String {
        Template::read(folder, key, Some(tsc_khz)).unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_template_is_read_once_and_again_when_it_has_changed() {
        let folder = template();
        let cache = Cache::default();
        let first = cache.read(folder.path(), "key", Some(2_000_100)).await.unwrap();
        let again = cache.read(folder.path(), "key", Some(2_000_100)).await.unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        let mut byte = [0; 6];
        File::from(first.memory().unwrap())
            .read_exact_at(&mut byte, 1 << 20)
            .unwrap();
        assert_eq!(&byte, b"memory");
        let memory = File::options().write(true).open(folder.path().join(MEMORY)).unwrap();
        memory.write_all_at(b"M", 1 << 20).unwrap();
        let error = cache.read(folder.path(), "key", Some(2_000_100)).await.unwrap_err();
        assert!(error.to_string().ends_with("memory is damaged"), "{error}");
    }

    #[test]
    fn what_is_damaged_or_of_another_machine_is_told_apart() {
        let folder = template();
        let path = folder.path();
        assert!(refused(path, "other", 2_000_000).contains("it belongs to key, not to other"));
        assert!(refused(path, "key", 2_010_000).contains("2000000 kHz, this host's at 2010000 kHz"));
        std::fs::write(path.join(STATE), "stale").unwrap();
        assert!(refused(path, "key", 2_000_000).ends_with("state is damaged"));
        std::fs::write(path.join(MANIFEST), "{").unwrap();
        assert!(refused(path, "key", 2_000_000).contains("EOF"));
        std::fs::remove_file(path.join(MEMORY)).unwrap();
        assert!(refused(path, "key", 2_000_000).contains("No such file"));
    }
}
