//! Looks for a text in all that a process has in memory. Of a virtual machine's process, the guest's memory is part.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// Whether a process has the text anywhere: environment, arguments, heap, stacks, files it has mapped.
///
/// # Errors
/// When the process may not be looked into.
pub(crate) fn holds(pid: u32, text: &str) -> io::Result<bool> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let mut fields = line.split(' ');
        let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
        // Pages of the kernel's own cannot be read, and hold nothing of the process.
        if !rights.starts_with('r') || line.contains("[v") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let address = |digits| u64::from_str_radix(digits, 16).unwrap();
        if contains(&memory, address(start), address(end), text.as_bytes())? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn contains(memory: &File, start: u64, end: u64, text: &[u8]) -> io::Result<bool> {
    let mut chunk = vec![0; CHUNK];
    let mut at = start;
    while at < end {
        let wanted = CHUNK.min(usize::try_from(end - at).unwrap());
        let read = match memory.read_at(&mut chunk[..wanted], at) {
            Ok(read) => read,
            // Unmapped in the meantime, or beyond the end of a mapped file.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(false),
            Err(error) => return Err(error),
        };
        if memchr::memmem::find(&chunk[..read], text).is_some() {
            return Ok(true);
        }
        if read < wanted || at + read as u64 == end {
            break;
        }
        // It may lie across the boundary.
        at += (read - text.len()) as u64;
    }
    Ok(false)
}
