//! The files that this program is made of: its binary, and the libraries that the dynamic loader found for it.

use std::ffi::{CStr, CString, c_int, c_void};
use std::io;
use std::os::unix::ffi::OsStringExt;

/// Devices an agent may want: to discard what it reads from or writes to, and random numbers.
pub(super) const DEVICES: [&CStr; 4] = [c"/dev/null", c"/dev/zero", c"/dev/random", c"/dev/urandom"];

/// The binary that runs.
///
/// # Errors
/// When the system does not tell.
pub(super) fn binary() -> io::Result<CString> {
    let path = std::env::current_exe()?;
    CString::new(path.into_os_string().into_vec()).map_err(io::Error::other)
}

/// The shared libraries it has loaded and the loader itself, by the paths they were found at: inside, the loader looks
/// for them there again.
pub(super) fn libraries() -> Vec<CString> {
    let mut paths: Vec<CString> = Vec::new();
    // SAFETY: the callback has the type that is asked for, and the vector outlives the call, which is alone to use it.
    #[allow(unsafe_code, reason = "std does not tell which libraries are loaded")]
    unsafe {
        libc::dl_iterate_phdr(Some(note), (&raw mut paths).cast());
    }
    paths
}

#[allow(unsafe_code, reason = "a callback of the dynamic loader")]
unsafe extern "C" fn note(object: *mut libc::dl_phdr_info, _size: usize, paths: *mut c_void) -> c_int {
    // SAFETY: the loader gives us a live object, and passes on the pointer to the vector in `libraries`.
    let (name, paths) = unsafe { ((*object).dlpi_name, &mut *paths.cast::<Vec<CString>>()) };
    if !name.is_null() {
        // SAFETY: a name ends with a zero, and lives as long as its object.
        let name = unsafe { CStr::from_ptr(name) };
        // The program itself has no name here, and what the kernel maps is no file.
        if name.to_bytes().starts_with(b"/") {
            paths.push(name.to_owned());
        }
    }
    0
}
