//! Messaging within the process, for tests and for running functions without a server: subjects with wildcards,
//! subscriptions, and responders that answer on the spot.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Either, ready, select};
use nex_runtime::host_services::HostError;
use nex_runtime::invocation::Reply;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{Gather, Gathered, Message, Messaging, sort_headers};
use crate::error::{no_responders, timeout};
use crate::names::{InvalidPattern, SubjectPattern};
use crate::time::sleep;

/// Bytes of a message; the default of a NATS server.
const MAX_PAYLOAD: usize = 1024 * 1024;

/// A message bus in memory. Clones share it.
///
/// [Responders](Self::respond) answer while the message is being delivered. A request that reaches only responders
/// therefore never waits: its answer, or the fact that there is none, is known at once. A request that reaches a
/// [subscription](Self::subscribe) waits, as a reply may come from anywhere.
///
/// ```
/// # use nex_host_services::messaging::MemoryMessaging;
/// # use nex_runtime::invocation::Reply;
/// let bus = MemoryMessaging::new();
/// bus.respond("greet.*", |message| Some(Reply::from(message.payload.clone())))?;
/// # Ok::<(), nex_host_services::InvalidPattern>(())
/// ```
#[derive(Clone, Default)]
pub struct MemoryMessaging {
    bus: Arc<Bus>,
}

#[derive(Default)]
struct Bus {
    next_id: AtomicU64,
    listeners: Mutex<Vec<Listener>>,
}

struct Listener {
    id: u64,
    pattern: SubjectPattern,
    target: Target,
}

type Responder = dyn Fn(&Message) -> Option<Reply> + Send + Sync;

#[derive(Clone)]
enum Target {
    Subscription(mpsc::UnboundedSender<Message>),
    Responder(Arc<Responder>),
}

/// How many listeners of each kind a message reached.
#[derive(Default)]
struct Delivered {
    subscriptions: usize,
    responders: usize,
}

impl fmt::Debug for MemoryMessaging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listeners = self.bus.listeners.lock().len();
        f.debug_struct("MemoryMessaging")
            .field("listeners", &listeners)
            .finish()
    }
}

impl MemoryMessaging {
    /// A bus without listeners.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Receives all messages of a subject, wildcards allowed, from now on. To reply, [send](Self::send) a message to
    /// their `reply` subject.
    ///
    /// # Errors
    /// The pattern is malformed.
    pub fn subscribe(&self, pattern: &str) -> Result<Subscription, InvalidPattern> {
        let pattern = SubjectPattern::new(pattern)?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let id = self.add(pattern, Target::Subscription(sender));
        Ok(Subscription {
            id,
            bus: self.bus.clone(),
            receiver,
        })
    }

    /// Answers all messages of a subject, wildcards allowed, from now on. `None` listens without answering. The closure
    /// runs on the sender's thread.
    ///
    /// # Errors
    /// The pattern is malformed.
    pub fn respond(
        &self,
        pattern: &str,
        responder: impl Fn(&Message) -> Option<Reply> + Send + Sync + 'static,
    ) -> Result<(), InvalidPattern> {
        let pattern = SubjectPattern::new(pattern)?;
        self.add(pattern, Target::Responder(Arc::new(responder)));
        Ok(())
    }

    /// Delivers a message to all who listen.
    pub fn send(&self, message: Message) {
        self.deliver(message);
    }

    fn add(&self, pattern: SubjectPattern, target: Target) -> u64 {
        let id = self.bus.next_id.fetch_add(1, Ordering::Relaxed);
        self.bus.listeners.lock().push(Listener { id, pattern, target });
        id
    }

    fn deliver(&self, mut message: Message) -> Delivered {
        sort_headers(&mut message.headers);
        // Not under the lock, because responders may use the bus.
        let targets: Vec<Target> = {
            let listeners = self.bus.listeners.lock();
            let matching = listeners.iter().filter(|l| l.pattern.matches(&message.subject));
            matching.map(|listener| listener.target.clone()).collect()
        };
        let mut delivered = Delivered::default();
        for target in targets {
            match target {
                Target::Subscription(sender) => {
                    delivered.subscriptions += usize::from(sender.send(message.clone()).is_ok());
                }
                Target::Responder(respond) => {
                    delivered.responders += 1;
                    if let (Some(reply), Some(subject)) = (respond(&message), &message.reply) {
                        self.deliver(Message {
                            subject: subject.clone(),
                            reply: None,
                            headers: reply.headers,
                            payload: reply.body,
                        });
                    }
                }
            }
        }
        delivered
    }

    /// Sends a request; returns where the replies arrive and whether more can come than already have.
    fn ask(&self, mut message: Message) -> Result<(Subscription, bool), HostError> {
        let inbox = format!("_INBOX.memory.{}", self.bus.next_id.fetch_add(1, Ordering::Relaxed));
        let replies = self
            .subscribe(&inbox)
            .map_err(|error| crate::error::internal(error.to_string()))?;
        message.reply = Some(inbox);
        let subject = message.subject.clone();
        let delivered = self.deliver(message);
        if delivered.subscriptions + delivered.responders == 0 {
            return Err(no_responders(&subject));
        }
        Ok((replies, delivered.subscriptions > 0))
    }
}

impl Messaging for MemoryMessaging {
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), HostError>> {
        self.send(message);
        ready(Ok(())).boxed()
    }

    fn request(&self, message: Message, limit: Duration) -> BoxFuture<'_, Result<Message, HostError>> {
        let asked = self.ask(message);
        Box::pin(async move {
            let (mut replies, more) = asked?;
            let first = match replies.try_next() {
                None if more => before(replies.next(), sleep(limit)).await,
                first => first,
            };
            first.ok_or_else(|| timeout(format!("no reply within {} ms", limit.as_millis())))
        })
    }

    fn request_many(&self, message: Message, gather: Gather) -> BoxFuture<'_, Result<Vec<Message>, HostError>> {
        let asked = self.ask(message);
        Box::pin(async move {
            let (mut replies, more) = asked?;
            let mut gathered = Gathered::new(gather);
            let mut time_is_up = std::pin::pin!(sleep(gather.timeout));
            loop {
                let next = match replies.try_next() {
                    None if more => before(replies.next(), time_is_up.as_mut()).await,
                    next => next,
                };
                let Some(reply) = next else { break };
                if !gathered.add(reply)? {
                    break;
                }
            }
            Ok(gathered.replies)
        })
    }

    fn max_payload(&self) -> usize {
        MAX_PAYLOAD
    }
}

/// What the first future yields, unless the second is done before.
async fn before<T>(wanted: impl Future<Output = Option<T>>, limit: impl Future<Output = ()>) -> Option<T> {
    match select(std::pin::pin!(wanted), std::pin::pin!(limit)).await {
        Either::Left((value, _)) => value,
        Either::Right(_) => None,
    }
}

/// Messages of one [`MemoryMessaging::subscribe`]; it ends when dropped.
pub struct Subscription {
    id: u64,
    bus: Arc<Bus>,
    receiver: mpsc::UnboundedReceiver<Message>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Subscription {
    /// The next message; waits for one.
    pub async fn next(&mut self) -> Option<Message> {
        self.receiver.recv().await
    }

    /// The next message, if one has arrived.
    pub fn try_next(&mut self) -> Option<Message> {
        self.receiver.try_recv().ok()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.bus.listeners.lock().retain(|listener| listener.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_subscription_ends_with_its_handle() {
        let bus = MemoryMessaging::new();
        let mut kept = bus.subscribe("a.*").unwrap();
        drop(bus.subscribe("a.>").unwrap());
        let message = Message {
            subject: "a.b".to_owned(),
            payload: Bytes::from_static(b"x"),
            ..Message::default()
        };
        assert_eq!(bus.deliver(message.clone()).subscriptions, 1);
        assert_eq!(kept.try_next(), Some(message));
        assert_eq!(kept.try_next(), None);
    }

    #[test]
    fn silent_responders_need_no_clock() {
        let bus = MemoryMessaging::new();
        bus.respond("a", |_| None).unwrap();
        let message = Message {
            subject: "a".to_owned(),
            ..Message::default()
        };
        // No executor with a timer here, and no minute to wait.
        let minute = Duration::from_secs(60);
        let one = futures::executor::block_on(bus.request(message.clone(), minute));
        assert_eq!(
            one.unwrap_err().code,
            nex_runtime::host_services::HostErrorCode::Timeout
        );
        let gather = Gather {
            timeout: minute,
            max_replies: None,
            max_bytes: 1,
        };
        let many = futures::executor::block_on(bus.request_many(message, gather));
        assert_eq!(many.unwrap(), []);
    }
}
