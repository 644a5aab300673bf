//! The sending half of a link: any thread appends frames, one task writes all that is waiting at once.
//!
//! Frames are encoded under a short lock into one buffer; payloads from [`COPY_LIMIT`] on are queued as they are and
//! leave by a vectored write. A sender who knows that nothing follows at once may write on its own thread
//! ([`Outbox::send_now`]), which saves waking the writing task.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use futures::task::AtomicWaker;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::io::AsyncWrite;
use tokio::sync::Notify;

use super::frame::{HEADER_LEN, MetaWriter, put_header};
use super::message::Message;

/// Payloads below this many bytes are copied behind their metadata: cheaper than one more piece in a write.
const COPY_LIMIT: usize = 16 << 10;

/// Pieces handed to one vectored write.
const MAX_SLICES: usize = 64;

/// Why a message was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The link is closed.
    #[error("the link is closed")]
    Closed,
    /// As many bytes as the sender allows are waiting.
    #[error("the link is congested")]
    Full,
    /// The message passes the size limits of the link.
    #[error("the message is too large for the link")]
    TooLarge,
}

/// Queues messages of one direction. Clones share the queue.
pub struct Outbox<M> {
    shared: Arc<Shared>,
    message: PhantomData<fn(M)>,
}

impl<M> Clone for Outbox<M> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            message: PhantomData,
        }
    }
}

impl<M> fmt::Debug for Outbox<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.shared.queue.lock();
        f.debug_struct("Outbox")
            .field("waiting", &queue.waiting)
            .field("closed", &queue.closed)
            .finish_non_exhaustive()
    }
}

struct Shared {
    queue: Mutex<Queue>,
    /// None once the link has ended: the stream is closed although clones of the outbox live on.
    writer: Mutex<Option<Writer>>,
    /// Wakes the writing task.
    task: AtomicWaker,
    /// Told when bytes have left while somebody waits for room.
    room: Notify,
    room_blocking: Condvar,
}

/// What is queued, in order: the chunks, then the tail.
struct Queue {
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    /// Bytes accepted and not yet taken by the transport.
    waiting: usize,
    /// Senders waiting for room.
    waiters: usize,
    /// Something is queued that the sender of the next message is to write with it.
    gathering: bool,
    closed: bool,
}

/// What there is to do for a message that was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// It leaves with those before it.
    Nothing,
    /// The writing task must learn of it.
    Wake,
    /// It is the last of several that were to leave together.
    Write,
}

/// The transport, and what is being written to it.
struct Writer {
    io: Box<dyn AsyncWrite + Send + Unpin>,
    batch: VecDeque<Bytes>,
}

/// How far a write came.
enum Written {
    /// Nothing is waiting.
    All,
    /// Nothing is waiting and nothing more will come.
    Closed,
}

impl<M: Message> Outbox<M> {
    /// A queue in front of a stream, and the task that writes it.
    pub fn new(io: impl AsyncWrite + Send + Unpin + 'static) -> (Self, WriteTask) {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                chunks: VecDeque::new(),
                tail: BytesMut::new(),
                waiting: 0,
                waiters: 0,
                gathering: false,
                closed: false,
            }),
            writer: Mutex::new(Some(Writer {
                io: Box::new(io),
                batch: VecDeque::new(),
            })),
            task: AtomicWaker::new(),
            room: Notify::new(),
            room_blocking: Condvar::new(),
        });
        let outbox = Self {
            shared: shared.clone(),
            message: PhantomData,
        };
        (outbox, WriteTask { shared })
    }

    /// Queues a message whatever is waiting: for answers and health, whose number the protocol bounds.
    ///
    /// # Errors
    /// [`SendError::Closed`], [`SendError::TooLarge`].
    pub fn send(&self, message: M) -> Result<(), SendError> {
        self.try_send(message, usize::MAX)
    }

    /// Queues a message if fewer than `room` bytes are waiting.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn try_send(&self, message: M, room: usize) -> Result<(), SendError> {
        self.shared.push_and_wake(self.shared.queue.lock(), message, room)
    }

    /// Queues a message if fewer than `room` bytes are waiting, to be written with the next one, which must follow at
    /// once, or by [`write_gathered`](Self::write_gathered).
    ///
    /// # Errors
    /// [`SendError`].
    pub fn gather(&self, message: M, room: usize) -> Result<(), SendError> {
        let mut queue = self.shared.queue.lock();
        queue.gathering = queue.push(message, room)? != Due::Nothing;
        Ok(())
    }

    /// Writes what was gathered, on this thread. Never blocks, as [`send_now`](Self::send_now).
    pub fn write_gathered(&self) {
        let gathering = std::mem::take(&mut self.shared.queue.lock().gathering);
        if gathering {
            self.shared.write_or_wake();
        }
    }

    /// Queues a message as [`try_send`](Self::try_send) does and writes at once, on this thread, if nothing else was
    /// queued. Never blocks: what the transport does not take is left to the writing task.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send_now(&self, message: M, room: usize) -> Result<(), SendError> {
        let due = self.shared.queue.lock().push(message, room)?;
        if due != Due::Nothing {
            self.shared.write_or_wake();
        }
        Ok(())
    }

    /// Queues a message once fewer than `room` bytes are waiting. Needs no runtime.
    ///
    /// # Errors
    /// [`SendError::Closed`], [`SendError::TooLarge`].
    ///
    /// # Cancel safety
    /// A dropped future has queued nothing.
    pub async fn send_when_room(&self, message: M, room: usize) -> Result<(), SendError> {
        loop {
            let mut freed = pin!(self.shared.room.notified());
            {
                let mut queue = self.shared.queue.lock();
                if !queue.is_full(room) {
                    return self.shared.push_and_wake(queue, message, room);
                }
                freed.as_mut().enable();
                queue.waiters += 1;
            }
            let _waiter = Waiter(&self.shared);
            freed.await;
        }
    }

    /// Queues a message once fewer than `room` bytes are waiting, blocking the thread for at most `patience`.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send_blocking(&self, message: M, room: usize, patience: Duration) -> Result<(), SendError> {
        let mut queue = self.shared.queue.lock();
        if queue.is_full(room) {
            let until = Instant::now() + patience;
            queue.waiters += 1;
            self.shared
                .room_blocking
                .wait_while_until(&mut queue, |queue| queue.is_full(room), until);
            queue.waiters -= 1;
        }
        self.shared.push_and_wake(queue, message, room)
    }

    /// Lets what is queued go out, then ends the stream. Nothing is accepted any more.
    pub fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake_waiters();
        self.shared.task.wake();
    }

    /// Bytes accepted and not yet taken by the transport.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.queue.lock().waiting
    }
}

/// Takes a sender off the list when its wait ends, however it ends.
struct Waiter<'a>(&'a Shared);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.queue.lock().waiters -= 1;
    }
}

impl Queue {
    /// Whether a sender who asks for so much room has to wait; on a closed link nobody does.
    fn is_full(&self, room: usize) -> bool {
        self.waiting >= room && !self.closed
    }

    /// Appends a message; whoever does has to do what is due.
    fn push<M: Message>(&mut self, message: M, room: usize) -> Result<Due, SendError> {
        if self.closed {
            return Err(SendError::Closed);
        }
        if self.is_full(room) {
            return Err(SendError::Full);
        }
        let was_idle = self.chunks.is_empty() && self.tail.is_empty();
        let start = self.tail.len();
        self.tail.resize(start + HEADER_LEN, 0);
        let encoded = message.encode(&mut MetaWriter::new(&mut self.tail, M::LIMITS.meta));
        let meta = self.tail.len() - start - HEADER_LEN;
        let encoded = match encoded {
            Ok(encoded) if encoded.payload.len() <= M::LIMITS.payload => encoded,
            // Serialising to memory fails for lack of room only.
            _ => {
                self.tail.truncate(start);
                return Err(SendError::TooLarge);
            }
        };
        let payload = encoded.payload;
        put_header(&mut self.tail[start..], meta, payload.len(), encoded.id, encoded.kind);
        self.waiting += HEADER_LEN + meta + payload.len();
        if payload.len() < COPY_LIMIT {
            self.tail.extend_from_slice(&payload);
        } else {
            self.chunks.push_back(self.tail.split().freeze());
            self.chunks.push_back(payload);
        }
        Ok(match std::mem::take(&mut self.gathering) {
            true => Due::Write,
            false if was_idle => Due::Wake,
            false => Due::Nothing,
        })
    }
}

impl Shared {
    /// Appends a message and leaves the writing to the task, unless it is the last of several.
    fn push_and_wake<M: Message>(
        &self,
        mut queue: MutexGuard<'_, Queue>,
        message: M,
        room: usize,
    ) -> Result<(), SendError> {
        let due = queue.push(message, room)?;
        drop(queue);
        match due {
            Due::Nothing => {}
            Due::Wake => self.task.wake(),
            Due::Write => self.write_or_wake(),
        }
        Ok(())
    }

    /// Writes until nothing waits or the transport takes no more.
    fn poll_write(&self, writer: &mut Writer, cx: &mut Context<'_>) -> Poll<io::Result<Written>> {
        loop {
            if writer.batch.is_empty() {
                let mut queue = self.queue.lock();
                std::mem::swap(&mut writer.batch, &mut queue.chunks);
                if !queue.tail.is_empty() {
                    writer.batch.push_back(queue.tail.split().freeze());
                }
                if writer.batch.is_empty() {
                    return Poll::Ready(Ok(if queue.closed { Written::Closed } else { Written::All }));
                }
            }
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let mut count = 0;
            for (slice, chunk) in slices.iter_mut().zip(&writer.batch) {
                *slice = IoSlice::new(chunk);
                count += 1;
            }
            let io = Pin::new(&mut *writer.io);
            let written = ready!(io.poll_write_vectored(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            writer.advance(written);
            let mut queue = self.queue.lock();
            // `abandon` may have set it to 0 meanwhile.
            queue.waiting = queue.waiting.saturating_sub(written);
            if queue.waiters > 0 {
                self.wake_waiters();
            }
        }
    }

    /// Writes on this thread if the transport is free and takes everything, else leaves it to the task.
    fn write_or_wake(&self) {
        let done = self.writer.try_lock().is_some_and(|mut writer| {
            let mut cx = Context::from_waker(Waker::noop());
            writer.as_mut().is_some_and(|writer| {
                // The task also gets to see a failure, by its own write.
                matches!(self.poll_write(writer, &mut cx), Poll::Ready(Ok(Written::All)))
            })
        });
        if !done {
            self.task.wake();
        }
    }

    fn wake_waiters(&self) {
        self.room.notify_waiters();
        self.room_blocking.notify_all();
    }

    /// Ends the stream and refuses everything from now on.
    fn abandon(&self) {
        *self.writer.lock() = None;
        let mut queue = self.queue.lock();
        queue.closed = true;
        queue.chunks.clear();
        queue.tail.clear();
        queue.waiting = 0;
        drop(queue);
        self.wake_waiters();
    }
}

impl Writer {
    fn advance(&mut self, mut written: usize) {
        while let Some(chunk) = self.batch.front_mut() {
            if written < chunk.len() {
                chunk.advance(written);
                return;
            }
            written -= chunk.len();
            self.batch.pop_front();
        }
    }
}

/// The task that writes what an [`Outbox`] queues.
pub struct WriteTask {
    shared: Arc<Shared>,
}

impl fmt::Debug for WriteTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WriteTask")
    }
}

impl WriteTask {
    /// Writes until the outbox is closed and empty, then ends the stream. Dropping the future closes the outbox.
    ///
    /// # Errors
    /// The transport failed; the outbox is closed.
    pub async fn run(self) -> io::Result<()> {
        let close = CloseOnDrop(&self.shared);
        poll_fn(|cx| {
            // Registered before looking, so that no push in between is missed.
            close.0.task.register(cx.waker());
            let mut writer = close.0.writer.lock();
            let Some(writer) = writer.as_mut() else {
                return Poll::Ready(Ok(()));
            };
            match ready!(close.0.poll_write(writer, cx))? {
                Written::All => Poll::Pending,
                Written::Closed => Pin::new(&mut *writer.io).poll_shutdown(cx),
            }
        })
        .await
    }
}

struct CloseOnDrop<'a>(&'a Shared);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}
