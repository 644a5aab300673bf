//! Remembers which signed claims have been used, for as long as they are valid: whoever overhears a request must not be
//! able to send it again.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::claims::Claims;

/// Used claims by issuer and ID, with the end of their life in seconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Replay {
    used: Mutex<HashMap<(String, String), u64>>,
}

impl Replay {
    /// Marks claims as used. `None` if they have been before. A guard that is dropped without
    /// [`keep`](Used::keep) forgets them again, so that a request that failed may be repeated.
    pub(super) fn check_in(&self, claims: &Claims, valid_until: u64, now: u64) -> Option<Used<'_>> {
        let key = (claims.issuer.clone(), claims.id.clone());
        let mut used = self.used.lock();
        used.retain(|_, until| *until >= now);
        if used.contains_key(&key) {
            return None;
        }
        used.insert(key.clone(), valid_until);
        Some(Used {
            replay: self,
            key: Some(key),
        })
    }
}

/// Claims in use.
#[derive(Debug)]
pub(super) struct Used<'a> {
    replay: &'a Replay,
    key: Option<(String, String)>,
}

impl Used<'_> {
    /// The request has done what it asked for.
    pub(super) fn keep(mut self) {
        self.key = None;
    }
}

impl Drop for Used<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.replay.used.lock().remove(&key);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn once_within_their_life() {
        let replay = Replay::default();
        let claims = |id: &str, issuer: &str| Claims {
            id: id.into(),
            issuer: issuer.into(),
            ..Claims::default()
        };
        let (a, same_id) = (claims("1", "A"), claims("1", "B"));
        drop(replay.check_in(&a, 100, 10).unwrap());
        replay.check_in(&a, 100, 10).unwrap().keep();
        assert!(replay.check_in(&a, 100, 100).is_none());
        replay.check_in(&same_id, 50, 10).unwrap().keep();
        assert_eq!(replay.used.lock().len(), 2);
        // Whatever is checked in after their life would be refused for its time; the memory of them may go.
        replay.check_in(&claims("2", "A"), 200, 101).unwrap().keep();
        assert_eq!(replay.used.lock().len(), 1);
    }
}
