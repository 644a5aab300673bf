//! The limits of a workload as people name them: a key with a unit in configurations, requests and answers, a short name
//! and a value with a unit on the command line, and for each the values that are possible at all.
//!
//! One type, [`LimitSet`], holds some of them: the defaults of a node, what it allows at most, what a deploy asks for.
//! Applied to each other they give the engine's [`Limits`].

mod notation;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use nex_runtime::engine::Limits;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::control::messages::LimitValues;

/// Longest time of a limit: 30 days.
const MAX_TIME_MS: u64 = 30 * 24 * 3_600 * 1_000;

/// Most bytes of heap, or of buffers: 64 GiB.
const MAX_MEMORY_BYTES: u64 = 64 << 30;

/// Least bytes of buffers: a function that gets its payload has one.
const MIN_BUFFER_BYTES: u64 = 64 << 10;

/// Most bytes of a reply: what a NATS server can be made to take, 64 MiB.
pub(crate) const MAX_REPLY_BYTES: u32 = 64 << 20;

/// Most log lines in ten seconds: what the link between node and agent takes from one function.
const MAX_LOG_LINES: u64 = 10_000;

/// A limit that a node configures and a deploy may ask for: each of [`Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "they are documented on the fields of `Limits`")]
pub enum LimitKey {
    CpuTime,
    WallTime,
    StartupCpuTime,
    Heap,
    Buffer,
    Stack,
    HostCalls,
    Timers,
    Reply,
    LogLines,
    QueueDepth,
    Concurrency,
    Instances,
    HibernateAfter,
}

/// What the values of a limit count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds.
    Milliseconds,
    /// Bytes.
    Bytes,
    /// Things.
    Count,
}

impl LimitKey {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 14] = [
        Self::CpuTime,
        Self::WallTime,
        Self::StartupCpuTime,
        Self::Heap,
        Self::Buffer,
        Self::Stack,
        Self::HostCalls,
        Self::Timers,
        Self::Reply,
        Self::LogLines,
        Self::QueueDepth,
        Self::Concurrency,
        Self::Instances,
        Self::HibernateAfter,
    ];

    /// The key in JSON, which ends in the unit: `cpu_time_ms`.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::CpuTime => "cpu_time_ms",
            Self::WallTime => "wall_time_ms",
            Self::StartupCpuTime => "startup_cpu_time_ms",
            Self::Heap => "heap_bytes",
            Self::Buffer => "buffer_bytes",
            Self::Stack => "stack_bytes",
            Self::HostCalls => "host_calls",
            Self::Timers => "timers",
            Self::Reply => "reply_bytes",
            Self::LogLines => "log_lines",
            Self::QueueDepth => "queue_depth",
            Self::Concurrency => "concurrency",
            Self::Instances => "instances",
            Self::HibernateAfter => "hibernate_after_ms",
        }
    }

    /// The name on the command line, where values have their unit: `cpu_time`.
    #[must_use]
    pub fn name(self) -> &'static str {
        let key = self.key();
        let short = key.strip_suffix("_ms").or_else(|| key.strip_suffix("_bytes"));
        short.unwrap_or(key)
    }

    /// What its values count.
    #[must_use]
    pub fn unit(self) -> Unit {
        match self {
            Self::CpuTime | Self::WallTime | Self::StartupCpuTime | Self::HibernateAfter => Unit::Milliseconds,
            Self::Heap | Self::Buffer | Self::Stack | Self::Reply => Unit::Bytes,
            Self::HostCalls
            | Self::Timers
            | Self::LogLines
            | Self::QueueDepth
            | Self::Concurrency
            | Self::Instances => Unit::Count,
        }
    }

    /// The values it can have on any node.
    #[must_use]
    pub fn bounds(self) -> RangeInclusive<u64> {
        match self {
            Self::CpuTime | Self::WallTime | Self::StartupCpuTime => 1..=MAX_TIME_MS,
            Self::Heap => Limits::MIN_HEAP_BYTES..=MAX_MEMORY_BYTES,
            Self::Buffer => MIN_BUFFER_BYTES..=MAX_MEMORY_BYTES,
            Self::Stack => Limits::MIN_STACK_BYTES.into()..=Limits::MAX_STACK_BYTES.into(),
            Self::HostCalls => 0..=65_536,
            Self::Timers => 0..=1_000_000,
            Self::Reply => 0..=MAX_REPLY_BYTES.into(),
            Self::QueueDepth => 1..=1_000_000,
            Self::LogLines => 0..=MAX_LOG_LINES,
            Self::Concurrency => 1..=65_536,
            Self::Instances => 1..=1_000,
            Self::HibernateAfter => 0..=MAX_TIME_MS,
        }
    }

    /// Its value among these.
    #[must_use]
    pub fn of(self, limits: &Limits) -> u64 {
        match self {
            Self::CpuTime => milliseconds(limits.cpu_time),
            Self::WallTime => milliseconds(limits.wall_time),
            Self::StartupCpuTime => milliseconds(limits.startup_cpu_time),
            Self::Heap => limits.heap_bytes,
            Self::Buffer => limits.buffer_bytes,
            Self::Stack => limits.stack_bytes.into(),
            Self::HostCalls => limits.host_calls.into(),
            Self::Timers => limits.timers.into(),
            Self::Reply => limits.reply_bytes.into(),
            Self::LogLines => limits.log_lines.into(),
            Self::QueueDepth => limits.queue_depth.into(),
            Self::Concurrency => limits.concurrency.into(),
            Self::Instances => limits.instances.into(),
            Self::HibernateAfter => milliseconds(limits.hibernate_after),
        }
    }

    fn put(self, limits: &mut Limits, value: u64) {
        // The bounds see to it that it fits.
        let count = u32::try_from(value).unwrap_or(u32::MAX);
        let time = Duration::from_millis(value);
        match self {
            Self::CpuTime => limits.cpu_time = time,
            Self::WallTime => limits.wall_time = time,
            Self::StartupCpuTime => limits.startup_cpu_time = time,
            Self::Heap => limits.heap_bytes = value,
            Self::Buffer => limits.buffer_bytes = value,
            Self::Stack => limits.stack_bytes = count,
            Self::HostCalls => limits.host_calls = count,
            Self::Timers => limits.timers = count,
            Self::Reply => limits.reply_bytes = count,
            Self::LogLines => limits.log_lines = count,
            Self::QueueDepth => limits.queue_depth = count,
            Self::Concurrency => limits.concurrency = count,
            Self::Instances => limits.instances = count,
            Self::HibernateAfter => limits.hibernate_after = time,
        }
    }

    /// The limit with this [key](Self::key).
    #[must_use]
    pub fn find(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|limit| limit.key() == key)
    }

    fn check(self, value: u64) -> Result<u64, LimitError> {
        if self.bounds().contains(&value) {
            return Ok(value);
        }
        Err(LimitError::OutOfBounds { limit: self, value })
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What is wrong with limits. The texts name the key, the value and what is possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError {
    /// There is no such limit.
    #[error("unknown limit `{0}`, expected one of {keys}", keys = keys())]
    Unknown(String),
    /// The value is no number that counts anything.
    #[error("`{limit}` is {found}, expected a whole number{unit}", unit = unit(" of ", *.limit))]
    NotANumber {
        /// Which.
        limit: LimitKey,
        /// What is there, as JSON.
        found: String,
    },
    /// No node could grant it.
    #[error("`{limit}` is {value}, possible are {} to {}{unit}", .limit.bounds().start(), .limit.bounds().end(), unit = unit(" ", *.limit))]
    OutOfBounds {
        /// Which.
        limit: LimitKey,
        /// What was asked for.
        value: u64,
    },
    /// This node does not allow it.
    #[error("`{limit}` is {value}, this node allows at most {allowed}{unit}", unit = unit(" ", *.limit))]
    NotAllowed {
        /// Which.
        limit: LimitKey,
        /// What was asked for.
        value: u64,
        /// The node's maximum.
        allowed: u64,
    },
}

fn keys() -> String {
    LimitKey::ALL.map(LimitKey::key).join(", ")
}

fn unit(before: &str, limit: LimitKey) -> String {
    match limit.unit() {
        Unit::Milliseconds => format!("{before}milliseconds"),
        Unit::Bytes => format!("{before}bytes"),
        Unit::Count => String::new(),
    }
}

impl fmt::Display for LimitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

/// Values of some limits. In JSON an object with [keys](LimitKey::key) like `cpu_time_ms`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimitSet(BTreeMap<LimitKey, u64>);

impl LimitSet {
    /// All of these.
    #[must_use]
    pub fn complete(limits: &Limits) -> Self {
        Self(LimitKey::ALL.map(|limit| (limit, limit.of(limits))).into())
    }

    /// Reads a JSON object; members that are null count as absent.
    ///
    /// # Errors
    /// [`LimitError`]
    pub fn from_json(members: Map<String, Value>) -> Result<Self, LimitError> {
        let mut set = Self::default();
        for (key, value) in members {
            let limit = LimitKey::find(&key).ok_or(LimitError::Unknown(key))?;
            if value.is_null() {
                continue;
            }
            let number = value.as_u64().ok_or_else(|| LimitError::NotANumber {
                limit,
                found: value.to_string(),
            })?;
            set.insert(limit, number)?;
        }
        Ok(set)
    }

    /// Sets one.
    ///
    /// # Errors
    /// [`LimitError::OutOfBounds`]
    pub fn insert(&mut self, limit: LimitKey, value: u64) -> Result<(), LimitError> {
        self.0.insert(limit, limit.check(value)?);
        Ok(())
    }

    /// With one more, for literals.
    ///
    /// # Errors
    /// [`LimitError::OutOfBounds`]
    pub fn with(mut self, limit: LimitKey, value: u64) -> Result<Self, LimitError> {
        self.insert(limit, value)?;
        Ok(self)
    }

    /// Its members, one by one.
    pub(crate) fn assignments(&self) -> impl Iterator<Item = Assignment> {
        self.iter().map(|(limit, value)| Assignment(limit, value))
    }

    /// The value of one, if it is set.
    #[must_use]
    pub fn get(&self, limit: LimitKey) -> Option<u64> {
        self.0.get(&limit).copied()
    }

    /// Those that are set.
    pub fn iter(&self) -> impl Iterator<Item = (LimitKey, u64)> + '_ {
        self.0.iter().map(|(&limit, &value)| (limit, value))
    }

    /// The same for an answer.
    #[must_use]
    pub fn values(&self) -> LimitValues {
        self.iter()
            .map(|(limit, value)| (limit.key().to_owned(), value))
            .collect()
    }

    /// Whether none is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The limits given, with what this set says instead.
    #[must_use]
    pub fn over(&self, mut limits: Limits) -> Limits {
        for (limit, value) in self.iter() {
            limit.put(&mut limits, value);
        }
        limits
    }

    /// Checks that nothing goes beyond a maximum.
    ///
    /// # Errors
    /// [`LimitError::NotAllowed`]
    pub fn check_within(&self, max: &Limits) -> Result<(), LimitError> {
        for (limit, value) in self.iter() {
            let allowed = limit.of(max);
            if value > allowed {
                return Err(LimitError::NotAllowed { limit, value, allowed });
            }
        }
        Ok(())
    }
}

/// Later ones win.
impl FromIterator<Assignment> for LimitSet {
    fn from_iter<T: IntoIterator<Item = Assignment>>(assignments: T) -> Self {
        Self(
            assignments
                .into_iter()
                .map(|Assignment(limit, value)| (limit, value))
                .collect(),
        )
    }
}

/// `NAME=VALUE` of the command line, within the bounds of the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment(LimitKey, u64);

impl Serialize for LimitSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(limit, value)| (limit.key(), value)))
    }
}

impl<'de> Deserialize<'de> for LimitSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let members = Map::deserialize(deserializer)?;
        Self::from_json(members).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
