//! A suite of small functions, each with its expectations in its first lines, run on the real engine with host services
//! in memory. A case needs no Rust: add a file under `cases/<topic>/` (`.js` classic form, `.mjs` module form).
//!
//! The directives of a case are comment lines at the top of the file; `README.md` lists them.

mod case;
mod outcome;
mod run;
mod world;

pub use case::{Case, InvalidCase};
pub use run::run;

use std::io;
use std::path::{Path, PathBuf};

/// Finds every case below a folder, sorted by name.
///
/// # Errors
/// When a folder cannot be read.
pub fn discover(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir()? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "js" || extension == "mjs")
            {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
