//! Who a node is: a server key (`N…`), whose public part is the node's ID, and a curve key (`X…`) for which
//! environments are sealed. Kept in a state folder, if there is one, so that both survive a restart.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nkeys::{KeyPair, KeyPairType, XKey};
use rustix::fs::{FlockOperation, flock};

/// Keys of a node.
pub struct Identity {
    id: String,
    xkey: XKey,
    public_xkey: String,
    /// Held for as long as the node lives, so that no second node takes the same identity.
    lock: Option<File>,
}

/// Shows the public keys only.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("public_xkey", &self.public_xkey)
            .finish_non_exhaustive()
    }
}

/// Why the identity in a state folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file or folder cannot be read or written.
    #[error("state folder: {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another node is running with this state folder.
    #[error("state folder {} is in use by another node", .0.display())]
    InUse(PathBuf),
    /// A file does not hold the key it should.
    #[error("{} does not hold {expected}", path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// What belongs there.
        expected: &'static str,
    },
}

impl Identity {
    /// A new identity that is not kept.
    #[must_use]
    pub fn ephemeral() -> Self {
        Self::new(KeyPair::new_server(), XKey::new(), None)
    }

    /// The identity in a state folder, which is created with a new one if need be.
    ///
    /// # Errors
    /// [`IdentityError`]
    pub fn persistent(state_dir: &Path) -> Result<Self, IdentityError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::Io { path, source }
        };
        fs::create_dir_all(state_dir).map_err(at(state_dir))?;
        let lock_path = state_dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(at(&lock_path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => IdentityError::InUse(state_dir.to_owned()),
            error => at(&lock_path)(error.into()),
        })?;

        let node_path = state_dir.join("node.nk");
        let seed = read_or_create(&node_path, || KeyPair::new_server().seed().ok())?;
        let node = KeyPair::from_seed(&seed)
            .ok()
            .filter(|key| key.key_pair_type() == KeyPairType::Server)
            .ok_or(IdentityError::Key {
                path: node_path,
                expected: "the seed of a server key (SN…)",
            })?;
        let xkey_path = state_dir.join("node.xk");
        let seed = read_or_create(&xkey_path, || XKey::new().seed().ok())?;
        let xkey = XKey::from_seed(&seed).map_err(|_| IdentityError::Key {
            path: xkey_path,
            expected: "the seed of a curve key (SX…)",
        })?;
        Ok(Self::new(node, xkey, Some(lock)))
    }

    fn new(node: KeyPair, xkey: XKey, lock: Option<File>) -> Self {
        Self {
            id: node.public_key(),
            public_xkey: xkey.public_key(),
            xkey,
            lock,
        }
    }

    /// The node's ID: its public server key, `N…`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The public curve key, `X…`.
    #[must_use]
    pub fn public_xkey(&self) -> &str {
        &self.public_xkey
    }

    /// The key that opens environments sealed for this node.
    #[must_use]
    pub fn xkey(&self) -> &XKey {
        &self.xkey
    }
}

/// A seed file, readable by its owner only. A new one appears whole or not at all.
fn read_or_create(path: &Path, make: impl FnOnce() -> Option<String>) -> Result<String, IdentityError> {
    let io = |source| IdentityError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::read_to_string(path) {
        Ok(seed) => return Ok(seed.trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
    }
    let seed = make().ok_or_else(|| io(io::Error::other("no key could be made")))?;
    let draft = path.with_extension("new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&draft)
        .map_err(io)?;
    file.write_all(seed.as_bytes()).map_err(io)?;
    file.sync_all().map_err(io)?;
    fs::rename(&draft, path).map_err(io)?;
    Ok(seed)
}

/// A child that is being started elsewhere in this process has a copy of the descriptor until it runs its program, and
/// would keep the lock until then.
impl Drop for Identity {
    fn drop(&mut self) {
        if let Some(lock) = &self.lock
            && let Err(error) = flock(lock, FlockOperation::Unlock)
        {
            tracing::debug!(%error, "the lock on the state folder ends with its file");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn survives_a_restart_and_is_used_by_one_node_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let first = Identity::persistent(&state).unwrap();
        assert!(first.id().starts_with('N') && first.public_xkey().starts_with('X'));
        assert!(matches!(Identity::persistent(&state), Err(IdentityError::InUse(_))));
        let (id, xkey) = (first.id().to_owned(), first.public_xkey().to_owned());
        drop(first);
        let second = Identity::persistent(&state).unwrap();
        assert_eq!((second.id(), second.public_xkey()), (id.as_str(), xkey.as_str()));
        let mode = fs::metadata(state.join("node.nk")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_ne!(Identity::ephemeral().id(), id);
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("node.nk"), "SUnonsense").unwrap();
        assert!(matches!(
            Identity::persistent(folder.path()),
            Err(IdentityError::Key { .. })
        ));
        assert_eq!(fs::read(folder.path().join("node.nk")).unwrap(), b"SUnonsense");
    }
}
