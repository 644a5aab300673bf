//! Checks of everything a function may name: buckets, keys, objects, subjects and headers.
//!
//! They are strict because a malformed name can do more than fail: a subject longer than the server's control line makes
//! the server drop the connection that all workloads of a node share, and an empty token in a key makes a key that can
//! be written but not read. All checks run before a backend sees the request, so every backend behaves the same.

use std::fmt;

use nex_runtime::host_services::{Headers, HostError};
use serde::{Deserialize, Serialize};

use crate::error::{invalid, limit};

/// Bytes of a subject, key or object name. Even encoded and prefixed, that many fit well into the 4,096 bytes of the
/// server's default control line.
pub(crate) const MAX_NAME_BYTES: usize = 1_024;

/// Bytes of a bucket name; NATS allows 255 for the name of the stream, which has a prefix of three or four.
pub(crate) const MAX_BUCKET_BYTES: usize = 240;

/// A bucket name: letters, digits, `-` and `_`.
pub(crate) fn check_bucket(name: &str) -> Result<(), HostError> {
    if name.is_empty() {
        return Err(invalid("bucket name is required"));
    }
    if name.len() > MAX_BUCKET_BYTES {
        return Err(invalid(format!("bucket name is longer than {MAX_BUCKET_BYTES} bytes")));
    }
    if !name.bytes().all(is_bucket_byte) {
        return Err(invalid(format!(
            "bucket name {name:?} may only have letters, digits, '-' and '_'"
        )));
    }
    Ok(())
}

pub(crate) fn is_bucket_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

/// A key: dot-separated tokens of letters, digits, `-`, `_`, `/` and `=`.
pub(crate) fn check_key(key: &str) -> Result<(), HostError> {
    if key.is_empty() {
        return Err(invalid("key is required"));
    }
    if key.len() > MAX_NAME_BYTES {
        return Err(invalid(format!("key is longer than {MAX_NAME_BYTES} bytes")));
    }
    let legal = |byte: u8| is_bucket_byte(byte) || matches!(byte, b'/' | b'=' | b'.');
    if !key.bytes().all(legal) {
        return Err(invalid(format!(
            "key {key:?} may only have letters, digits, '-', '_', '/', '=' and '.'"
        )));
    }
    if key.split('.').any(str::is_empty) {
        return Err(invalid(format!(
            "key {key:?} may not begin or end with '.' or have two in a row"
        )));
    }
    Ok(())
}

/// An object name: any text.
pub(crate) fn check_object_name(name: &str) -> Result<(), HostError> {
    if name.is_empty() {
        return Err(invalid("name is required"));
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(invalid(format!("object name is longer than {MAX_NAME_BYTES} bytes")));
    }
    Ok(())
}

/// A concrete subject: dot-separated tokens without wildcards and white space.
pub(crate) fn check_subject(subject: &str) -> Result<(), HostError> {
    if subject.is_empty() {
        return Err(invalid("subject is required"));
    }
    if subject.len() > MAX_NAME_BYTES {
        return Err(invalid(format!("subject is longer than {MAX_NAME_BYTES} bytes")));
    }
    if subject.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(invalid(format!("subject {subject:?} may not have white space")));
    }
    if subject.contains(['*', '>']) {
        return Err(invalid(format!("subject {subject:?} may not have wildcards")));
    }
    if subject.split('.').any(str::is_empty) {
        return Err(invalid(format!("subject {subject:?} has an empty token")));
    }
    Ok(())
}

/// Message headers that survive the wire: visible ASCII names without `:`, values without line breaks.
pub(crate) fn check_message_headers(headers: &Headers) -> Result<(), HostError> {
    for (name, value) in headers {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic() && b != b':') {
            return Err(invalid(format!(
                "header name {name:?} may only have visible ASCII characters without ':'"
            )));
        }
        if value.contains(['\r', '\n']) {
            return Err(invalid(format!("header {name:?} has a line break in its value")));
        }
    }
    Ok(())
}

/// Checks a message against the server's `max_payload`, which counts headers too. Sending it anyway would make the
/// server close the connection.
pub(crate) fn check_message_size(headers: &Headers, payload: usize, max_payload: usize) -> Result<(), HostError> {
    let headers = if headers.is_empty() {
        0
    } else {
        // "NATS/1.0\r\n", "name: value\r\n" for each, "\r\n".
        12 + headers.iter().map(|(n, v)| n.len() + v.len() + 4).sum::<usize>()
    };
    if headers + payload > max_payload {
        return Err(limit(format!(
            "message of {} bytes is larger than the server's max_payload of {max_payload} bytes",
            headers + payload
        )));
    }
    Ok(())
}

/// A subject or a subject with wildcards: `*` stands for one token, a last `>` for one or more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SubjectPattern(String);

/// The text is no [`SubjectPattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a subject pattern: dot-separated tokens without white space, '*' for one token, '>' for the rest"
)]
pub struct InvalidPattern(pub String);

impl SubjectPattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// White space, an empty token, or a `>` that is not the last token.
    pub fn new(pattern: impl Into<String>) -> Result<Self, InvalidPattern> {
        let pattern = pattern.into();
        let mut tokens = pattern.split('.').rev();
        let last_legal = tokens.next().is_some_and(|last| !last.is_empty());
        let rest_legal = tokens.all(|token| !token.is_empty() && token != ">");
        if !last_legal || !rest_legal || pattern.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(InvalidPattern(pattern));
        }
        Ok(Self(pattern))
    }

    /// Whether the concrete subject is one of this pattern's.
    #[must_use]
    pub fn matches(&self, subject: &str) -> bool {
        let mut tokens = subject.split('.');
        for wanted in self.0.split('.') {
            match (wanted, tokens.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (wanted, Some(token)) if wanted == token => {}
                _ => return false,
            }
        }
        tokens.next().is_none()
    }
}

impl fmt::Display for SubjectPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SubjectPattern {
    type Error = InvalidPattern;
    fn try_from(pattern: String) -> Result<Self, InvalidPattern> {
        Self::new(pattern)
    }
}

impl From<SubjectPattern> for String {
    fn from(pattern: SubjectPattern) -> Self {
        pattern.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn patterns_match_like_the_server() {
        for (pattern, subject, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.b.c", "a.b", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("*.b", "a.b", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
            ("$SYS.>", "$SYS.REQ", true),
            ("$SYS.>", "$SYSTEM.REQ", false),
            ("a*", "ab", false),
        ] {
            let parsed = SubjectPattern::new(pattern).unwrap();
            assert_eq!(parsed.matches(subject), expected, "{pattern} {subject}");
        }
    }

    #[test]
    fn malformed_patterns() {
        for pattern in ["", ".", "a.", ".a", "a..b", "a b", ">.a", "a.>.b", "a\n"] {
            assert!(SubjectPattern::new(pattern).is_err(), "{pattern:?}");
        }
    }

    #[test]
    fn malformed_names() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        for key in ["", ".", ".a", "a.", "a..b", "a b", "a*", "a>", "schlüssel", &long] {
            assert!(check_key(key).is_err(), "{key:?}");
        }
        for subject in ["", ".", "a.", ".a", "a..b", "a b", "a\tb", "a.*", "a.>", "a\0", &long] {
            assert!(check_subject(subject).is_err(), "{subject:?}");
        }
        for bucket in ["", "a.b", "a b", "a/b", "eimer-ß", &long] {
            assert!(check_bucket(bucket).is_err(), "{bucket:?}");
        }
        for legal in ["a", "A-1_2", "a.b/c=d"] {
            check_key(legal).unwrap();
        }
        check_object_name("any text, with ünïcode / and spaces").unwrap();
        assert!(check_object_name(&long).is_err());
    }

    #[test]
    fn headers() {
        let header = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        check_message_headers(&header("X-Id", "a: b")).unwrap();
        for (name, value) in [("", "a"), ("a b", "c"), ("a:", "b"), ("ä", "b"), ("a", "b\r\nc: d")] {
            assert!(check_message_headers(&header(name, value)).is_err(), "{name:?}");
        }
        check_message_size(&header("ab", "cd"), 80, 100).unwrap();
        check_message_size(&header("ab", "cd"), 81, 100).unwrap_err();
        check_message_size(&Headers::new(), 100, 100).unwrap();
    }
}
