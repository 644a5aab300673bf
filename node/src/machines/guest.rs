//! The host's side of the control protocol with `nex-init` in a virtual machine, over whatever stream the hypervisor gives.
//!
//! A guest is not trusted: what comes out of turn, is malformed or too much ends the conversation with an error, and
//! whoever gets one kills the machine. Every step has a time limit, and no more is buffered than one message.

use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nex_agent::guest::control::{self, ControlError, Decoder, Seed, ToGuest, ToHost, VERSION};
use rand::Rng;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::MachineError;

/// What an agent in a guest puts on itself, which is an unprivileged user on a read-only root already: whoever breaks out of
/// V8 is to find as little as possible of the guest's kernel.
pub(crate) const CONFINEMENT: &str = "--confine=landlock,seccomp,rlimits";

/// How often a running guest is told the time: its clock counts the processor's cycles, the rate of which it only knows
/// roughly when the hypervisor emulates them.
const CLOCK_EVERY: Duration = Duration::from_secs(10);

/// How long a guest may take to read a message.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// Bytes read at a time.
const READ_CHUNK: usize = 4 << 10;

/// What went wrong with a guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum GuestError {
    /// The stream failed.
    #[error("the control channel: {0}")]
    Io(#[from] io::Error),
    /// The stream ended.
    #[error("the guest closed its control channel while {0} was waited for")]
    Closed(&'static str),
    /// It does not keep to the framing.
    #[error(transparent)]
    Malformed(#[from] ControlError),
    /// It said something that has no place here.
    #[error("the guest sent {got} while {expected} was waited for")]
    OutOfOrder {
        /// What it sent.
        got: &'static str,
        /// What was expected.
        expected: &'static str,
    },
    /// This side was asked to do something that has no place here.
    #[error("the guest is {is}; it must be {must_be} for that")]
    NotNow {
        /// Where it is.
        is: Phase,
        /// Where it should be.
        must_be: Phase,
    },
    /// The image belongs to another version of nex.
    #[error(
        "the guest speaks version {theirs} of the control protocol, this node version {VERSION}: build the image anew"
    )]
    Version {
        /// The guest's.
        theirs: u32,
    },
    /// It gave up.
    #[error("the guest: {0}")]
    Failed(String),
    /// The agent ended before it was of any use.
    #[error("the agent ended while {expected} was waited for ({status})")]
    AgentExited {
        /// How.
        status: ExitStatus,
        /// What was expected.
        expected: &'static str,
    },
    /// It took too long.
    #[error("the guest sent no {expected} within {patience:?}")]
    TimedOut {
        /// What was expected.
        expected: &'static str,
        /// How long.
        patience: Duration,
    },
}

impl From<GuestError> for MachineError {
    fn from(error: GuestError) -> Self {
        Self::Start(error.to_string())
    }
}

/// How far a guest has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its kernel starts.
    Booting,
    /// It waits to be told what to start.
    Booted,
    /// The agent waits for its link.
    Ready,
    /// The agent has it.
    Linked,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Booting => "booting",
            Self::Booted => "booted",
            Self::Ready => "ready",
            Self::Linked => "linked",
        })
    }
}

/// The stream to a guest.
pub(crate) trait Channel: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Channel for T {}

/// A guest on its way to being of use. After an error it is of none.
pub(crate) struct GuestControl {
    io: Box<dyn Channel>,
    decoder: Decoder,
    phase: Phase,
}

impl fmt::Debug for GuestControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestControl")
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl GuestControl {
    /// A guest that boots.
    pub(crate) fn booting(io: impl Channel) -> Self {
        Self::at(Phase::Booting, io)
    }

    /// A guest restored from a template, which was taken when it was ready.
    pub(crate) fn restored(io: impl Channel) -> Self {
        Self::at(Phase::Ready, io)
    }

    fn at(phase: Phase, io: impl Channel) -> Self {
        Self {
            io: Box::new(io),
            decoder: Decoder::default(),
            phase,
        }
    }

    /// Waits until the guest is up. Returns how long its kernel says that took.
    ///
    /// # Errors
    /// [`GuestError`].
    pub(crate) async fn booted(&mut self, patience: Duration) -> Result<Duration, GuestError> {
        self.must_be(Phase::Booting)?;
        match self.answer("Booted", patience).await? {
            ToHost::Booted {
                version: VERSION,
                uptime_ms,
            } => {
                self.phase = Phase::Booted;
                Ok(Duration::from_millis(uptime_ms))
            }
            ToHost::Booted { version, .. } => Err(GuestError::Version { theirs: version }),
            other => Err(out_of_order(&other, "Booted")),
        }
    }

    /// Starts the agent, confined by [`CONFINEMENT`], and waits until its engine is warm. The time for a template is after
    /// this.
    ///
    /// # Errors
    /// [`GuestError`].
    pub(crate) async fn start(
        &mut self,
        args: &[String],
        env: &[(String, String)],
        patience: Duration,
    ) -> Result<(), GuestError> {
        self.must_be(Phase::Booted)?;
        let start = ToGuest::Start {
            args: [CONFINEMENT.to_owned()]
                .into_iter()
                .chain(args.iter().cloned())
                .collect(),
            env: env.to_vec(),
        };
        self.send(&start).await?;
        match self.answer("Ready", patience).await? {
            ToHost::Ready => {
                self.phase = Phase::Ready;
                Ok(())
            }
            other => Err(out_of_order(&other, "Ready")),
        }
    }

    /// Sets the guest's clock, reseeds its random numbers and lets the agent have its link. Where the guest listens for the
    /// link, connect it before.
    ///
    /// # Errors
    /// [`GuestError`].
    pub(crate) async fn resume(&mut self, patience: Duration) -> Result<(), GuestError> {
        self.must_be(Phase::Ready)?;
        self.send(&resume_now()).await?;
        match self.answer("Linked", patience).await? {
            ToHost::Linked => {
                self.phase = Phase::Linked;
                Ok(())
            }
            other => Err(out_of_order(&other, "Linked")),
        }
    }

    /// Looks after a linked guest in a task of its own: keeps its clock right and learns how its agent ends. `lost` is
    /// called when the guest does not keep to the protocol, so that the machine is killed.
    ///
    /// # Errors
    /// [`GuestError::NotNow`].
    pub(crate) fn watch(self, lost: impl FnOnce(GuestError) + Send + 'static) -> Result<Guest, GuestError> {
        self.must_be(Phase::Linked)?;
        let (orders, inbox) = mpsc::channel(4);
        let (tell, agent) = watch::channel(None);
        tokio::spawn(async move {
            if let Err(error) = self.look_after(inbox, &tell).await {
                lost(error);
            }
        });
        Ok(Guest { orders, agent })
    }

    async fn look_after(
        mut self,
        mut orders: mpsc::Receiver<Order>,
        tell: &watch::Sender<Option<ExitStatus>>,
    ) -> Result<(), GuestError> {
        let mut clock = tokio::time::interval_at(Instant::now() + CLOCK_EVERY, CLOCK_EVERY);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The guest says `Linked` once for each time it was resumed.
        let mut resumed = 0_u32;
        let mut paused = false;
        loop {
            tokio::select! {
                read = self.receive() => match read? {
                    None => return Ok(()),
                    Some(ToHost::Linked) if resumed > 0 => resumed -= 1,
                    Some(ToHost::AgentExited { wait_status }) => {
                        tell.send_replace(Some(ExitStatus::from_raw(wait_status)));
                        return self.send(&ToGuest::Shutdown).await;
                    }
                    Some(ToHost::Failed { message }) => return Err(GuestError::Failed(printable(&message))),
                    Some(other) => return Err(out_of_order(&other, "AgentExited")),
                },
                order = orders.recv() => match order {
                    Some(Order::Pause) => paused = true,
                    Some(Order::Resume) => {
                        paused = false;
                        resumed += 1;
                        self.send(&resume_now()).await?;
                    }
                    Some(Order::Shutdown) => self.send(&ToGuest::Shutdown).await?,
                    None => return Ok(()),
                },
                // A paused guest would read later what was the time now.
                _ = clock.tick(), if !paused => self.send(&ToGuest::clock_now()).await?,
            }
        }
    }

    fn must_be(&self, must_be: Phase) -> Result<(), GuestError> {
        if self.phase == must_be {
            return Ok(());
        }
        Err(GuestError::NotNow {
            is: self.phase,
            must_be,
        })
    }

    async fn send(&mut self, message: &ToGuest) -> Result<(), GuestError> {
        let message = control::encode(message)?;
        let sent = timeout(WRITE_PATIENCE, async {
            self.io.write_all(&message).await?;
            self.io.flush().await
        });
        match sent.await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the guest does not read").into()),
        }
    }

    /// The next message, whatever it is; a guest that gave up, or an agent that ended, is an error.
    async fn answer(&mut self, expected: &'static str, patience: Duration) -> Result<ToHost, GuestError> {
        match timeout(patience, self.receive()).await {
            Err(_) => Err(GuestError::TimedOut { expected, patience }),
            Ok(Err(error)) => Err(error),
            Ok(Ok(None)) => Err(GuestError::Closed(expected)),
            Ok(Ok(Some(ToHost::Failed { message }))) => Err(GuestError::Failed(printable(&message))),
            Ok(Ok(Some(ToHost::AgentExited { wait_status }))) => Err(GuestError::AgentExited {
                status: ExitStatus::from_raw(wait_status),
                expected,
            }),
            Ok(Ok(Some(message))) => Ok(message),
        }
    }

    /// The next message; `None` when the guest has closed the stream.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    async fn receive(&mut self) -> Result<Option<ToHost>, GuestError> {
        let mut chunk = [0; READ_CHUNK];
        loop {
            if let Some(message) = self.decoder.decode()? {
                return Ok(Some(message));
            }
            match self.io.read(&mut chunk).await? {
                0 if self.decoder.is_empty() => return Ok(None),
                0 => return Err(GuestError::Closed("the rest of a message")),
                read => self.decoder.push(chunk.get(..read).unwrap_or_default()),
            }
        }
    }
}

fn resume_now() -> ToGuest {
    ToGuest::resume_now(Seed::new(|bytes| rand::rng().fill_bytes(bytes)))
}

fn out_of_order(got: &ToHost, expected: &'static str) -> GuestError {
    GuestError::OutOfOrder {
        got: got.name(),
        expected,
    }
}

/// What a guest says ends up in logs and terminals: as one line, without control characters.
fn printable(message: &str) -> String {
    let message = message.get(..message.floor_char_boundary(control::MAX_FAILURE));
    message
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// A guest that is looked after. The task ends with the last handle.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    orders: mpsc::Sender<Order>,
    agent: watch::Receiver<Option<ExitStatus>>,
}

#[derive(Debug)]
enum Order {
    Pause,
    Resume,
    Shutdown,
}

impl Guest {
    /// How the agent ended, if it has and the guest could say so.
    pub(crate) fn agent_exit(&self) -> Option<ExitStatus> {
        *self.agent.borrow()
    }

    /// To be called before the guest is paused.
    pub(crate) async fn pausing(&self) {
        _ = self.orders.send(Order::Pause).await;
    }

    /// Sets the clock after a pause, and reseeds.
    pub(crate) async fn resumed(&self) {
        // If the task has ended, so has the guest.
        _ = self.orders.send(Order::Resume).await;
    }

    /// Asks the guest to end.
    pub(crate) async fn shut_down(&self) {
        _ = self.orders.send(Order::Shutdown).await;
    }
}

#[cfg(test)]
mod tests;
