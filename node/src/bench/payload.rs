//! What load generators send, and what they expect back.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// The request of each call, and the reply that is right.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Payload {
    /// What is sent.
    pub requests: Requests,
    /// What must come back.
    pub expected: Expected,
}

/// What is sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Requests {
    /// So many bytes, different in every request, so that no reply is taken for another one's.
    Unique(usize),
    /// The same bytes every time.
    Fixed(Bytes),
}

/// What must come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expected {
    /// The request, byte for byte.
    Echo,
    /// These bytes.
    Exactly(Bytes),
    /// Anything but an error.
    Anything,
}

impl Payload {
    /// Unique requests of so many bytes, which must come back as they are.
    #[must_use]
    pub fn echo(size: usize) -> Self {
        Self {
            requests: Requests::Unique(size),
            expected: Expected::Echo,
        }
    }

    /// The request with this number.
    #[must_use]
    pub fn request(&self, key: u64) -> Bytes {
        match &self.requests {
            Requests::Fixed(bytes) => bytes.clone(),
            Requests::Unique(size) => {
                let mut bytes = BytesMut::with_capacity(*size + size_of::<u64>());
                for word in words(key).take(size.div_ceil(size_of::<u64>())) {
                    bytes.extend_from_slice(&word);
                }
                bytes.truncate(*size);
                bytes.freeze()
            }
        }
    }

    /// Bytes of each request.
    #[must_use]
    pub fn size(&self) -> usize {
        match &self.requests {
            Requests::Fixed(bytes) => bytes.len(),
            Requests::Unique(size) => *size,
        }
    }

    /// Checks the reply to the request with this number.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn check(&self, key: u64, reply: &[u8]) -> Result<(), String> {
        let (right, expected) = match &self.expected {
            Expected::Anything => return Ok(()),
            Expected::Exactly(bytes) => (reply == bytes, bytes.len()),
            Expected::Echo => (self.is_request(key, reply), self.size()),
        };
        if right {
            return Ok(());
        }
        Err(if reply.len() == expected {
            format!("a reply of {expected} bytes as expected, but other ones")
        } else {
            format!("a reply of {} bytes, expected {expected}", reply.len())
        })
    }

    fn is_request(&self, key: u64, bytes: &[u8]) -> bool {
        match &self.requests {
            Requests::Fixed(request) => bytes == request,
            Requests::Unique(size) => {
                bytes.len() == *size
                    && bytes
                        .chunks(size_of::<u64>())
                        .zip(words(key))
                        .all(|(chunk, word)| word.starts_with(chunk))
            }
        }
    }
}

/// The bytes of a unique request, eight at a time: the number itself first, then words that depend on it.
fn words(key: u64) -> impl Iterator<Item = [u8; 8]> {
    // An odd factor: no two places of one request are alike, nor the same place of two requests.
    (0_u64..).map(move |place| (key ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_differ_and_are_recognised() {
        for size in [0, 1, 7, 8, 9, 128, 1000] {
            let payload = Payload::echo(size);
            let request = payload.request(3);
            assert_eq!(request.len(), size);
            assert_eq!(payload.check(3, &request), Ok(()), "{size}");
            assert!(payload.check(3, &[&request[..], b"x"].concat()).is_err(), "{size}");
            if size > 0 {
                assert_ne!(request, payload.request(4), "{size}");
                assert!(payload.check(4, &request).is_err(), "{size}");
                let mut damaged = request.to_vec();
                damaged[size - 1] ^= 1;
                assert!(payload.check(3, &damaged).is_err(), "{size}");
            }
        }
        let request = Payload::echo(16).request(1);
        assert_ne!(request.slice(..8), request.slice(8..));
    }

    #[test]
    fn other_expectations() {
        let fixed = Requests::Fixed(Bytes::from_static(b"ask"));
        let mut payload = Payload {
            requests: fixed,
            expected: Expected::Exactly(Bytes::from_static(b"answer")),
        };
        assert_eq!(payload.request(7), "ask");
        assert_eq!(payload.check(7, b"answer"), Ok(()));
        assert_eq!(
            payload.check(7, b"ask"),
            Err("a reply of 3 bytes, expected 6".to_owned())
        );
        payload.expected = Expected::Anything;
        assert_eq!(payload.check(7, b"whatever"), Ok(()));
        payload.expected = Expected::Echo;
        assert_eq!(payload.check(7, b"ask"), Ok(()));
        assert!(payload.check(7, b"ask?").is_err());
    }
}
