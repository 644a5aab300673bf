//! What a function did to its agents lately, and what follows: pauses before it is placed again, loading alone, an agent of
//! its own, and in the end quarantine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::quarantine::{Quarantine, Record};

/// The conduct of one function.
#[derive(Debug)]
pub(in crate::agents) struct Conduct {
    /// Shared by all functions with the same bytes.
    artifact: Arc<Record>,
    recent: Mutex<Recent>,
}

/// How much an agent's end says of a function on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agents) enum Blame {
    /// It was one of several at work.
    Possible,
    /// It was the only one at work, but the end may have come from outside.
    Likely,
    /// It was this function.
    Certain,
}

#[derive(Debug, Default)]
struct Recent {
    /// Deaths it may have had a part in.
    deaths: u32,
    /// Counts towards an agent of its own.
    guilt: u32,
    /// An agent died while it loaded.
    suspect: bool,
    last: Option<Instant>,
}

/// After this long without another incident, all of this is forgotten. The artefact's record has a window of its own.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// Guilt from which on a function gets an agent of its own.
const ALONE: u32 = 2;

const BACK_OFF: Duration = Duration::from_millis(50);
const MAX_BACK_OFF: Duration = Duration::from_secs(1);

impl Conduct {
    pub(super) fn new(artifact: Arc<Record>) -> Self {
        Self {
            artifact,
            recent: Mutex::default(),
        }
    }

    /// An agent has ended, or must, while the function was loading or running on it. `what` completes "the last time, …".
    pub(in crate::agents) fn blame(&self, loading: bool, blame: Blame, what: &str) {
        {
            let mut recent = self.recent.lock();
            recent.forgive();
            recent.deaths += 1;
            recent.suspect |= loading;
            if blame != Blame::Possible {
                // A load that kills is the artefact's doing; one death at run time may have come from outside.
                recent.guilt += if loading { ALONE } else { 1 };
            }
            recent.last = Some(Instant::now());
        }
        if blame == Blame::Certain {
            self.artifact.incident(what);
        }
    }

    /// The quarantine it is in.
    pub(in crate::agents) fn quarantine(&self) -> Option<Quarantine> {
        self.artifact.quarantine()
    }

    /// Whether it must have an agent of its own.
    pub(in crate::agents) fn must_be_alone(&self) -> bool {
        let mut recent = self.recent.lock();
        recent.forgive();
        recent.guilt >= ALONE || self.artifact.is_on_trial()
    }

    /// Whether it must load while nothing else does.
    pub(in crate::agents) fn is_suspect(&self) -> bool {
        let mut recent = self.recent.lock();
        recent.forgive();
        recent.suspect
    }

    /// How long to wait before it is placed again.
    pub(in crate::agents) fn back_off(&self) -> Duration {
        let mut recent = self.recent.lock();
        recent.forgive();
        match recent.deaths {
            0 | 1 => Duration::ZERO,
            deaths => (BACK_OFF * 2_u32.saturating_pow(deaths.min(16) - 2)).min(MAX_BACK_OFF),
        }
    }
}

impl Recent {
    fn forgive(&mut self) {
        if self.last.is_some_and(|last| last.elapsed() > FORGIVEN_AFTER) {
            *self = Self::default();
        }
    }
}
