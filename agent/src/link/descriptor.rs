//! A link over a descriptor of another kind than a Unix socket: a virtio-serial port or a vsock connection, as a virtual
//! machine has them.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most that a virtio-serial port takes at once.
const PORT_WRITE: usize = 32 << 10;

/// The reading half.
#[derive(Debug)]
pub(crate) struct Reader(Arc<AsyncFd<OwnedFd>>);

/// The writing half. Shutting it down ends nothing: the descriptor is closed when both halves are dropped.
#[derive(Debug)]
pub(crate) struct Writer {
    descriptor: Arc<AsyncFd<OwnedFd>>,
    /// Where pieces are put together for a device, which makes a transfer of each piece it is given.
    gathered: Option<Vec<u8>>,
}

/// Makes a stream of a descriptor. Must be called inside a tokio runtime.
///
/// # Errors
/// When it is of a kind that cannot be waited for.
pub(crate) fn split(descriptor: OwnedFd) -> io::Result<(Reader, Writer)> {
    let flags = rustix::fs::fcntl_getfl(&descriptor)?;
    rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
    let mode = rustix::fs::fstat(&descriptor)?.st_mode;
    let is_device = FileType::from_raw_mode(mode) == FileType::CharacterDevice;
    #[allow(unsafe_code, reason = "tokio cannot know what an owner of a descriptor does with it")]
    // SAFETY: an `OwnedFd` holds one open descriptor for as long as it lives, and nothing here takes it out.
    let descriptor = Arc::new(unsafe { AsyncFd::register(descriptor) }?);
    let writer = Writer {
        descriptor: Arc::clone(&descriptor),
        gathered: is_device.then(|| Vec::with_capacity(PORT_WRITE)),
    };
    Ok((Reader(descriptor), writer))
}

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            match ready.try_io(|descriptor| Ok(rustix::io::read(descriptor, buf.initialize_unfilled())?)) {
                Ok(Ok(read)) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                // Not ready after all.
                Err(_) => {}
            }
        }
    }
}

impl Writer {
    fn poll_with(
        descriptor: &AsyncFd<OwnedFd>,
        cx: &mut Context<'_>,
        write: impl Fn(&OwnedFd) -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(descriptor.poll_write_ready(cx))?;
            match ready.try_io(|descriptor| Ok(write(descriptor.get_ref())?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) => return Poll::Ready(written),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Self::poll_with(&self.descriptor, cx, |descriptor| rustix::io::write(descriptor, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { descriptor, gathered } = &mut *self;
        let Some(gathered) = gathered else {
            return Self::poll_with(descriptor, cx, |descriptor| rustix::io::writev(descriptor, bufs));
        };
        gathered.clear();
        for buf in bufs {
            let room = PORT_WRITE - gathered.len();
            gathered.extend_from_slice(buf.get(..room).unwrap_or(buf));
            if gathered.len() == PORT_WRITE {
                break;
            }
        }
        Self::poll_with(descriptor, cx, |descriptor| rustix::io::write(descriptor, gathered))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
