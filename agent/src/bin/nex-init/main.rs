//! `nex-init`: the first process of a virtual machine. It sets the stage, starts the agent when the host says so, hands it
//! its link, and ends the machine with the agent.
//!
//! A machine has no network. All it has are byte streams to its host: one for control, one that becomes the agent's link,
//! and one for logs. The agent runs as a user without any rights, and cannot open them itself.
//!
//! The kernel panics when the first process ends, so this one never does: whatever goes wrong is said to the host, as far
//! as there is a way to, and the machine is rebooted, which its hypervisor takes for its end.

#[path = "../../confine/bounding_set.rs"]
mod bounding_set;
mod channels;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with the library, which has the host's side of it"
)]
#[path = "../../guest/control.rs"]
mod control;
#[allow(dead_code, reason = "shared with the library, which has the agent's side of it")]
#[path = "../../guest/handover.rs"]
mod handover;
mod launch;
mod reseed;
mod stage;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::system::{RebootCommand, reboot};
use rustix::time::{ClockId, clock_gettime};

use channels::{ABSENCE, Channels};
use control::{Seed, ToGuest, ToHost, VERSION};
use launch::Agent;

/// How long the host may take to acknowledge the last message.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long nothing can be done about a machine that cannot be rebooted.
const FOREVER: Duration = Duration::from_secs(3600);

fn main() -> ! {
    std::panic::set_hook(Box::new(|panic| {
        say(&format!("nex-init panicked: {panic}"));
        end();
    }));
    let ended = stage::set().and_then(|()| Channels::open()).map(|mut channels| {
        let last = match serve(&mut channels) {
            Ok(last) => last,
            Err(error) => {
                say(&format!("nex-init: {error}"));
                ToHost::failed(error.to_string())
            }
        };
        if let Err(error) = part(&mut channels, &last) {
            say(&format!("nex-init: {error}"));
        }
    });
    if let Err(error) = ended {
        say(&format!("nex-init: {error}"));
    }
    end()
}

/// To the log, or the console while there is no other.
fn say(line: &str) {
    // There is nobody left to tell of an error.
    _ = writeln!(io::stderr(), "ERROR {line}");
}

fn end() -> ! {
    loop {
        if let Err(error) = reboot(RebootCommand::Restart) {
            say(&format!("nex-init: the machine cannot be rebooted: {error}"));
        }
        std::thread::sleep(FOREVER);
    }
}

/// How far the machine has come.
enum Phase {
    /// The host has not been greeted.
    New,
    /// It has, and is to say what to start.
    Booted,
    /// The agent starts.
    Starting(Agent),
    /// It waits for its link.
    Ready(Agent),
    /// It has it.
    Linked(Agent),
}

impl Phase {
    fn agent(&self) -> Option<&Agent> {
        match self {
            Self::New | Self::Booted => None,
            Self::Starting(agent) | Self::Ready(agent) | Self::Linked(agent) => Some(agent),
        }
    }
}

/// Does what the host says until the agent has ended, or the host says so. Returns the last word to the host.
fn serve(channels: &mut Channels) -> io::Result<ToHost> {
    let signals = launch::child_signals()?;
    let mut phase = Phase::New;
    loop {
        if matches!(phase, Phase::New) && channels.is_connected() {
            channels.send(&ToHost::Booted {
                version: VERSION,
                uptime_ms: uptime_ms(),
            })?;
            phase = Phase::Booted;
        }
        let starting = match &phase {
            Phase::Starting(agent) => Some(agent),
            _ => None,
        };
        let ready = wait(channels, &signals, starting)?;
        if ready.children
            && let Some(wait_status) = launch::reap(&signals, phase.agent().map(|agent| agent.pid))?
        {
            return Ok(ToHost::AgentExited { wait_status });
        }
        phase = match phase {
            Phase::Starting(agent) if ready.agent => starting_agent(channels, agent)?,
            phase => phase,
        };
        while let Some(message) = channels.receive()? {
            phase = match (message, phase) {
                (ToGuest::Start { args, env }, Phase::Booted) => Phase::Starting(launch::start(&args, &env)?),
                (ToGuest::Resume { unix_nanos, seed }, Phase::Ready(agent)) => {
                    resume(unix_nanos, &seed)?;
                    let link = channels.open_link()?;
                    handover::give(&agent.socket, link.as_fd())?;
                    channels.send(&ToHost::Linked)?;
                    Phase::Linked(agent)
                }
                (ToGuest::Resume { unix_nanos, seed }, Phase::Linked(agent)) => {
                    resume(unix_nanos, &seed)?;
                    channels.send(&ToHost::Linked)?;
                    Phase::Linked(agent)
                }
                (ToGuest::Clock { unix_nanos }, phase @ Phase::Linked(_)) => {
                    reseed::set_clock(unix_nanos)?;
                    phase
                }
                (ToGuest::Shutdown, phase) => {
                    if let Some(agent) = phase.agent() {
                        agent.kill()?;
                        return Ok(ToHost::AgentExited {
                            wait_status: reap_agent(&signals, agent)?,
                        });
                    }
                    return Ok(ToHost::failed("shut down before it had an agent".to_owned()));
                }
                (message, _) => {
                    let message = format!("{} came out of turn", message.name());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
            };
        }
    }
}

/// Reads what a starting agent says.
fn starting_agent(channels: &Channels, mut agent: Agent) -> io::Result<Phase> {
    let mut byte = [0];
    match agent.socket.read(&mut byte)? {
        1 if byte == [handover::READY] => {
            channels.send(&ToHost::Ready)?;
            Ok(Phase::Ready(agent))
        }
        // It is ending. The host is not told that it is ready, and will be told how it ended.
        0 => Ok(Phase::Ready(agent)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the agent did not say that it is ready",
        )),
    }
}

fn resume(unix_nanos: u64, seed: &Seed) -> io::Result<()> {
    reseed::set_clock(unix_nanos)?;
    reseed::reseed(seed)
}

fn reap_agent(signals: &OwnedFd, agent: &Agent) -> io::Result<i32> {
    loop {
        if let Some(status) = launch::reap(signals, Some(agent.pid))? {
            return Ok(status);
        }
        poll(&mut [PollFd::new(signals, PollFlags::IN)], None)?;
    }
}

/// What can be looked at.
struct Ready {
    children: bool,
    agent: bool,
}

/// Waits until there is something to do.
fn wait(channels: &Channels, signals: &OwnedFd, starting: Option<&Agent>) -> io::Result<Ready> {
    let control = channels.interest();
    let absence = Timespec::try_from(ABSENCE).map_err(io::Error::other)?;
    let mut polled = vec![PollFd::new(signals, PollFlags::IN)];
    polled.extend(starting.map(|agent| PollFd::new(&agent.socket, PollFlags::IN)));
    polled.extend(control.map(|control| PollFd::from_borrowed_fd(control, PollFlags::IN)));
    let patience = control.is_none().then_some(&absence);
    match poll(&mut polled, patience) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let is_ready = |at: usize| polled.get(at).is_some_and(|polled| !polled.revents().is_empty());
    Ok(Ready {
        children: is_ready(0),
        agent: starting.is_some() && is_ready(1),
    })
}

/// Sends the last message and waits until the host has it: a byte that is in the device when the machine is rebooted is
/// lost.
fn part(channels: &mut Channels, last: &ToHost) -> io::Result<()> {
    channels.send(last)?;
    let until = Instant::now() + FAREWELL;
    while Instant::now() < until {
        match channels.receive()? {
            Some(ToGuest::Shutdown) => return Ok(()),
            Some(_) => {}
            None if !channels.is_connected() => return Ok(()),
            None => std::thread::sleep(ABSENCE),
        }
    }
    Ok(())
}

fn uptime_ms() -> u64 {
    let uptime = clock_gettime(ClockId::Boottime);
    u64::try_from(uptime.tv_sec * 1_000 + uptime.tv_nsec / 1_000_000).unwrap_or_default()
}

/// Says what was done when something went wrong.
fn during<T>(what: impl FnOnce() -> String, result: Result<T, impl Into<io::Error>>) -> io::Result<T> {
    result.map_err(|error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("{}: {error}", what()))
    })
}
