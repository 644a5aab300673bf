//! How each attack must end, and the limits its function gets: small where they are to be hit, out of the way elsewhere,
//! so that a slow machine changes nothing.

use std::time::Duration;

use nex_runtime::engine::{Limit, Limits};
use nex_runtime::invocation::ErrorKind;

/// How an attack ends.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    pub answer: Answer,
    /// The limit that decides the answer, and is reported as hit.
    pub limit: Option<Limit>,
    /// Soft limits on the way there, reported as well.
    pub before: &'static [Limit],
    pub fate: Fate,
}

/// What the caller gets.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    Error(ErrorKind),
    Reply(&'static str),
    /// The function does not load: the limit it hit is the answer.
    NotLoaded,
    /// The function does not load, and why is in the message.
    Refused(&'static str),
}

/// What becomes of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It serves on.
    Stays,
    /// It is drained and replaced.
    Condemned,
    /// V8 ends it, and it is replaced.
    Dies,
}

impl Expected {
    fn error(kind: ErrorKind) -> Self {
        Self {
            answer: Answer::Error(kind),
            limit: None,
            before: &[],
            fate: Fate::Stays,
        }
    }

    fn reply(text: &'static str) -> Self {
        Self {
            answer: Answer::Reply(text),
            ..Self::error(ErrorKind::Exception)
        }
    }

    /// Answered with the kind that belongs to the limit.
    fn limit(limit: Limit) -> Self {
        Self::error(limit.error_kind()).and(limit)
    }

    fn not_loaded(limit: Limit) -> Self {
        Self {
            answer: Answer::NotLoaded,
            ..Self::limit(limit)
        }
    }

    fn refused(why: &'static str) -> Self {
        Self {
            answer: Answer::Refused(why),
            ..Self::error(ErrorKind::Exception)
        }
    }

    fn and(self, limit: Limit) -> Self {
        Self {
            limit: Some(limit),
            ..self
        }
    }

    fn after(self, before: &'static [Limit]) -> Self {
        Self { before, ..self }
    }

    fn fate(self, fate: Fate) -> Self {
        Self { fate, ..self }
    }

    /// Of an attack, by its file and its name in it.
    pub fn of(file: &str, attack: &str) -> Self {
        match file {
            "endless.js" | "wasm.js" => Self::limit(Limit::CpuTime),
            "called_back.js" => Self::of_call_back(attack),
            "unstoppable.js" | "default_flags.js" => Self::limit(Limit::CpuTime).fate(Fate::Condemned),
            "gives_up.js" => Self::error(ErrorKind::Memory).fate(Fate::Condemned),
            "aborts.js" => Self::error(ErrorKind::NotReady).fate(Fate::Dies),
            "heap.js" => Self::limit(Limit::HeapBytes),
            "buffers.js" => Self::error(ErrorKind::Exception).and(Limit::BufferBytes),
            "recursion.js" => Self::of_recursion(attack),
            "floods.js" => Self::of_flood(attack),
            "top_level.js" | "top_level.mjs" => Self::of_top_level(attack),
            _ => panic!("nobody has said how the attacks of {file} must end"),
        }
    }

    fn of_call_back(attack: &str) -> Self {
        match attack {
            // The engine does not ask these for anything.
            "thrownCause" | "thrownAggregate" | "thrownObject" | "thrownProxy" | "prepareStackTrace" => {
                Self::error(ErrorKind::Exception)
            }
            "logGetter" | "logToString" | "logConstructor" => Self::reply(""),
            "hostCallPrototype" => Self::reply("quick"),
            _ => Self::limit(Limit::CpuTime),
        }
    }

    fn of_recursion(attack: &str) -> Self {
        match attack {
            // V8 needs no stack for these.
            "jsonStringify" => Self::reply(""),
            "jsonReply" => Self::limit(Limit::ReplyBytes),
            _ => Self::error(ErrorKind::Exception),
        }
    }

    fn of_flood(attack: &str) -> Self {
        match attack {
            "timers" | "intervals" => Self::limit(Limit::Timers),
            "timersThatMultiply" => Self::limit(Limit::CpuTime).after(&[Limit::Timers, Limit::LogLines]),
            "hostCallsOneByOne" | "streamWithoutEnd" => Self::limit(Limit::CpuTime),
            "hostCalls" => Self::limit(Limit::HostCalls),
            "hostCallsAwaited" => Self::limit(Limit::WallTime).after(&[Limit::HostCalls]),
            "neverSettlesWithTimer" | "waitsForHost" | "signalListeners" => Self::limit(Limit::WallTime),
            // Bounded for the sake of the agent, by no limit of the function's.
            "largeHostCalls" => Self::error(ErrorKind::HostService),
            "largeHeaders" => Self::error(ErrorKind::Exception),
            "logLines" | "escapesInLog" => Self::reply("logged").and(Limit::LogLines),
            "longLogLine" => Self::reply("logged"),
            "largeReply" | "largeTextReply" | "largeJsonReply" | "largeUtf8Reply" | "streamTooLarge" => {
                Self::limit(Limit::ReplyBytes)
            }
            "neverSettles" | "neverSettlesThenable" => Self::error(ErrorKind::Exception),
            _ => Self::reply("answered"),
        }
    }

    fn of_top_level(attack: &str) -> Self {
        match attack {
            "heap" => Self::not_loaded(Limit::HeapBytes),
            "neverWithTimer" => Self::not_loaded(Limit::WallTime),
            "never" => Self::refused("can never settle"),
            "recursion" => Self::refused("RangeError"),
            "buffers" => Self::refused("RangeError").after(&[Limit::BufferBytes]),
            "unstoppable" => Self::not_loaded(Limit::StartupCpuTime).fate(Fate::Condemned),
            _ => Self::not_loaded(Limit::StartupCpuTime),
        }
    }

    /// Whether code is terminated on the way, so that it might prove to be unstoppable.
    pub fn terminates(&self) -> bool {
        let soft = [
            Limit::BufferBytes,
            Limit::HostCalls,
            Limit::Timers,
            Limit::ReplyBytes,
            Limit::LogLines,
        ];
        self.limit.is_some_and(|limit| !soft.contains(&limit))
    }

    /// The limits of the attack's function.
    pub fn limits(&self) -> Limits {
        const FAR: Duration = Duration::from_secs(40);
        let mut limits = Limits {
            cpu_time: FAR,
            startup_cpu_time: FAR,
            wall_time: 2 * FAR,
            ..Limits::default()
        };
        match self.limit {
            Some(Limit::CpuTime) => limits.cpu_time = Duration::from_millis(200),
            Some(Limit::StartupCpuTime) => limits.startup_cpu_time = Duration::from_millis(200),
            Some(Limit::WallTime) => limits.wall_time = Duration::from_millis(400),
            Some(Limit::HeapBytes) => limits.heap_bytes = 32 << 20,
            Some(Limit::BufferBytes) => limits.buffer_bytes = 64 << 20,
            // Room for a line of 100 MB, and for the errors of 100,000 host calls.
            _ => limits.heap_bytes = 512 << 20,
        }
        limits
    }
}
