//! The receiving half of a link.

use std::fmt;
use std::io;
use std::marker::PhantomData;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::frame::{Frame, LinkError, Taken};
use super::message::Message;

/// Free space a read starts with.
const READ_CHUNK: usize = 64 << 10;

/// Most that is allocated on the word of a header alone. A larger frame grows the buffer as its bytes come in.
const TRUSTED_LEN: usize = 4 << 20;

/// Reads messages of one direction.
pub struct LinkReader<M> {
    io: Box<dyn AsyncRead + Send + Unpin>,
    buffer: BytesMut,
    message: PhantomData<fn() -> M>,
}

impl<M> fmt::Debug for LinkReader<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkReader")
            .field("buffered", &self.buffer.len())
            .finish_non_exhaustive()
    }
}

impl<M: Message> LinkReader<M> {
    /// Reads from a stream.
    pub fn new(io: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self {
            io: Box::new(io),
            buffer: BytesMut::with_capacity(READ_CHUNK),
            message: PhantomData,
        }
    }

    /// The next message, or `None` once the peer has closed the link. Waits only when no whole frame is buffered, so
    /// a loop over it handles everything that one read brought before it reads again.
    ///
    /// # Errors
    /// [`LinkError`]; the link is of no further use.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<M>, LinkError> {
        loop {
            let missing = match self.take()? {
                Ok(message) => return Ok(Some(message)),
                Err(missing) => missing,
            };
            self.make_room(missing);
            let read = match self.io.read_buf(&mut self.buffer).await {
                Ok(read) => read,
                // A peer that dies with unread bytes resets the link; that is an end like any other.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
                Err(error) => return Err(error.into()),
            };
            if read == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(LinkError::Truncated)
                };
            }
        }
    }

    /// The next message, if all of it has arrived with those before.
    ///
    /// # Errors
    /// [`LinkError`]; the link is of no further use.
    pub fn next_buffered(&mut self) -> Result<Option<M>, LinkError> {
        self.take().map(Result::ok)
    }

    /// A message from the buffer, or how many bytes it lacks.
    fn take(&mut self) -> Result<Result<M, usize>, LinkError> {
        match Frame::take(&mut self.buffer, M::LIMITS)? {
            Taken::Frame(frame) => M::decode(frame).map(Ok),
            Taken::Missing(missing) => Ok(Err(missing)),
        }
    }

    /// Sees to it that the next read has a buffer worth the system call.
    fn make_room(&mut self, missing: usize) {
        let free = self.buffer.capacity() - self.buffer.len();
        let wanted = missing.min(TRUSTED_LEN.max(self.buffer.len())).max(READ_CHUNK / 4);
        if free < wanted {
            self.buffer.reserve(wanted.max(READ_CHUNK));
        }
    }
}
