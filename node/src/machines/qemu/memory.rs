//! The memory of virtual machines and what templates keep of it: files without a name, and their copies on disk.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, ftruncate, memfd_create, seek};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

/// Bytes that are copied, or left out, together.
const BLOCK: usize = 64 << 10;

/// A file without a name, of so many bytes, all of them 0.
///
/// # Errors
/// What the system says.
pub(super) fn anonymous(bytes: u64) -> io::Result<OwnedFd> {
    let file = memfd_create("nex-machine", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, bytes)?;
    Ok(file)
}

/// Makes a file unchangeable for whoever has it, this process included. It can still be mapped privately.
///
/// # Errors
/// What the system says, for example when somebody has it mapped.
pub(super) fn seal(file: &OwnedFd) -> io::Result<()> {
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    Ok(fcntl_add_seals(file, seals)?)
}

/// Copies what is not 0 to a file, which must be empty, and gives it the same length. Returns a hash over that: of each
/// block its place and its bytes.
///
/// # Errors
/// What the system says.
pub(super) fn copy(from: &File, to: &File) -> io::Result<[u8; 32]> {
    let len = from.metadata()?.len();
    to.set_len(len)?;
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    while let Some(data) = next_data(from, at)? {
        // Blocks lie at multiples of their size, wherever the file system has its holes.
        at = data - data % BLOCK as u64;
        let size = usize::try_from(len - at).unwrap_or(BLOCK).min(BLOCK);
        let block = block.get_mut(..size).unwrap_or_default();
        from.read_exact_at(block, at)?;
        if block.iter().any(|&byte| byte != 0) {
            hash.update(at.to_le_bytes());
            hash.update(&*block);
            to.write_all_at(block, at)?;
        }
        at += size as u64;
    }
    hash.update(len.to_le_bytes());
    Ok(hash.finalize().into())
}

/// Where something follows that is no hole.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_is_alike_and_keeps_holes() {
        let memory = File::from(anonymous(64 << 20).unwrap());
        memory.write_all_at(b"first", 5).unwrap();
        memory.write_all_at(b"across", (1 << 20) + BLOCK as u64 - 3).unwrap();
        memory.write_all_at(b"last", (64 << 20) - 4).unwrap();
        let disk = tempfile::tempfile().unwrap();
        let hash = copy(&memory, &disk).unwrap();
        assert!(disk.metadata().unwrap().blocks() * 512 <= 5 * BLOCK as u64);
        let back = File::from(anonymous(0).unwrap());
        assert_eq!(copy(&disk, &back).unwrap(), hash);
        let (mut one, mut other) = (vec![0; 64 << 20], vec![0; 64 << 20]);
        memory.read_exact_at(&mut one, 0).unwrap();
        back.read_exact_at(&mut other, 0).unwrap();
        assert!(one == other);
    }

    #[test]
    fn the_hash_tells_places_and_bytes() {
        let hash_of = |at: u64, bytes: &[u8], len: u64| {
            let memory = File::from(anonymous(len).unwrap());
            memory.write_all_at(bytes, at).unwrap();
            copy(&memory, &tempfile::tempfile().unwrap()).unwrap()
        };
        let hash = hash_of(100, b"a", 1 << 20);
        assert_eq!(hash, hash_of(100, b"a", 1 << 20));
        for other in [
            hash_of(101, b"a", 1 << 20),
            hash_of(100 + BLOCK as u64, b"a", 1 << 20),
            hash_of(100, b"b", 1 << 20),
            hash_of(100, b"a", 2 << 20),
        ] {
            assert_ne!(hash, other);
        }
    }

    #[test]
    fn a_sealed_file_cannot_be_changed() {
        let memory = anonymous(4096).unwrap();
        seal(&memory).unwrap();
        let file = File::from(memory);
        assert!(file.write_all_at(b"x", 0).is_err());
        assert!(file.set_len(0).is_err());
    }
}
