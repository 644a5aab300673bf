//! Key files: seeds given by flags, and the developer's own keys, made on first use.

use std::io::Write;
use std::path::{Path, PathBuf};

use nkeys::{KeyPair, KeyPairType, XKey};

use super::args::read_file;
use super::failure::Failure;

/// Reads the account key that signs deploy and stop requests.
pub(super) fn read_issuer(path: &Path) -> Result<KeyPair, Failure> {
    let seed = read_seed("issuer key", path)?;
    let key = KeyPair::from_seed(&seed)
        .map_err(|error| unusable("issuer key", path, "the seed of an account key (SA…)", error))?;
    if key.key_pair_type() != KeyPairType::Account {
        return Err(unusable(
            "issuer key",
            path,
            "the seed of an account key (SA…)",
            format_args!("it is one of a {:?}", key.key_pair_type()).to_string(),
        ));
    }
    Ok(key)
}

/// Reads the curve key that seals the environment.
pub(super) fn read_xkey(path: &Path) -> Result<XKey, Failure> {
    let seed = read_seed("xkey", path)?;
    XKey::from_seed(&seed).map_err(|error| unusable("xkey", path, "the seed of a curve key (SX…)", error))
}

/// The issuer key of this developer, `issuer.nk`.
pub(super) fn own_issuer() -> Result<KeyPair, Failure> {
    let path = home()?.join("issuer.nk");
    ensure(&path, || KeyPair::new_account().seed())?;
    read_issuer(&path)
}

/// The curve key of this developer, `publisher.xk`.
pub(super) fn own_xkey() -> Result<XKey, Failure> {
    let path = home()?.join("publisher.xk");
    ensure(&path, || XKey::new().seed())?;
    read_xkey(&path)
}

/// Where the developer's files are: `$NEX_HOME`, else `~/.nex`.
pub(super) fn home() -> Result<PathBuf, Failure> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    variable("NEX_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".nex")))
        .ok_or_else(|| Failure::usage("cannot tell where keys are kept: neither NEX_HOME nor HOME is set"))
}

/// Makes the key file unless it is there. Only the owner can read it, and nobody ever sees half of it: it appears under
/// its name when it is complete, and of two processes at the same moment one wins.
fn ensure(path: &Path, make: impl FnOnce() -> Result<String, nkeys::error::Error>) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    let failed = |error: &dyn std::fmt::Display| {
        Failure::usage(format_args!("cannot make the key file {}: {error}", path.display()))
    };
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    make_private_directory(directory).map_err(|error| failed(&error))?;
    let seed = make().map_err(|error| failed(&error))?;
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(|error| failed(&error))?;
    writeln!(file, "{seed}").map_err(|error| failed(&error))?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed(&error.error)),
    }
}

fn make_private_directory(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// The first line that looks like a seed; other lines are comments.
fn read_seed(what: &str, path: &Path) -> Result<String, Failure> {
    let content = String::from_utf8(read_file(what, path)?).unwrap_or_default();
    content
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with('S'))
        .map(str::to_owned)
        .ok_or_else(|| {
            Failure::usage(format_args!(
                "the {what} {} holds no seed; expected a line that starts with S",
                path.display()
            ))
        })
}

fn unusable(what: &str, path: &Path, expected: &str, reason: impl std::fmt::Display) -> Failure {
    Failure::usage(format_args!(
        "cannot use the {what} {}: {reason}; expected {expected}",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_may_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/issuer.nk");
        ensure(&path, || KeyPair::new_account().seed()).unwrap();
        let first = read_issuer(&path).unwrap().public_key();
        ensure(&path, || KeyPair::new_account().seed()).unwrap();
        assert_eq!(read_issuer(&path).unwrap().public_key(), first);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(&path), 0o600);
            assert_eq!(mode(path.parent().unwrap()), 0o700);
        }
    }

    #[test]
    fn a_key_of_the_wrong_kind_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("k");
        let message = |failure: Failure| failure.message.unwrap_or_default();
        std::fs::write(&path, KeyPair::new_user().seed().unwrap()).unwrap();
        assert!(message(read_issuer(&path).unwrap_err()).contains("SA…"));
        assert!(message(read_xkey(&path).err().unwrap()).contains("SX…"));
        std::fs::write(&path, "# empty\n").unwrap();
        assert!(message(read_issuer(&path).unwrap_err()).contains("no seed"));
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(message(read_issuer(&path).unwrap_err()).contains("no seed"));
    }
}
