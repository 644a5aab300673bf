//! Unix sockets in a machine's folder, whose path may be as long as it likes: the address of a socket has 107 bytes, and
//! goes through a descriptor of the folder.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use tokio::net::UnixStream;

/// A socket that is there, or will be.
#[derive(Debug, Clone)]
pub(super) struct Socket {
    folder: Arc<OwnedFd>,
    name: &'static str,
}

impl Socket {
    /// The sockets of these names in a folder.
    ///
    /// # Errors
    /// When the folder cannot be opened.
    pub(super) fn all_in<const N: usize>(folder: &Path, names: [&'static str; N]) -> io::Result<[Self; N]> {
        let folder = Arc::new(OwnedFd::from(File::open(folder)?));
        Ok(names.map(|name| Self {
            folder: folder.clone(),
            name,
        }))
    }

    /// Connects to it.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if it is not there yet, or what the system says.
    pub(super) async fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(format!("/proc/self/fd/{}/{}", self.folder.as_raw_fd(), self.name)).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn reaches_where_no_address_does() {
        let base = tempfile::tempdir().unwrap();
        let deep = base.path().join("x".repeat(150));
        std::fs::create_dir(&deep).unwrap();
        let [socket] = Socket::all_in(&deep, ["s"]).unwrap();
        assert_eq!(socket.connect().await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(UnixListener::bind(deep.join("s")).is_err());
        std::os::unix::fs::symlink(&deep, base.path().join("short")).unwrap();
        let _listener = UnixListener::bind(base.path().join("short/s")).unwrap();
        socket.connect().await.unwrap();
    }
}
