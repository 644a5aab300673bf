//! Subjects of the control interface, and the rules for everything that becomes part of a subject: namespaces, workload
//! names, trigger subjects and the deny list.

use std::fmt::Display;

/// First token of every control, event and log subject.
pub const PREFIX: &str = "$NEX";

/// Namespace of node events. Workloads cannot be deployed into it, so that they cannot be mistaken for the node.
pub const SYSTEM_NAMESPACE: &str = "system";

/// Longest namespace or workload name, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// Longest trigger subject, in bytes.
pub const MAX_SUBJECT_BYTES: usize = 1024;

/// Most trigger subjects of one workload.
pub const MAX_TRIGGER_SUBJECTS: usize = 256;

/// Trigger subjects that no function may have, whatever the node's configuration says.
pub const ALWAYS_DENIED: [&str; 3] = ["$SYS.>", "$JS.>", "$NEX.>"];

/// `$NEX.AUCTION`
pub const AUCTION: &str = "$NEX.AUCTION";

/// `$NEX.PING`: every node answers.
pub const PING: &str = "$NEX.PING";

/// `$NEX.PING.{node}`
#[must_use]
pub fn ping(node: impl Display) -> String {
    format!("{PREFIX}.PING.{node}")
}

/// `$NEX.WPING.{namespace}[.{workload}]`
#[must_use]
pub fn workload_ping(namespace: impl Display, workload: Option<&str>) -> String {
    match workload {
        None => format!("{PREFIX}.WPING.{namespace}"),
        Some(workload) => format!("{PREFIX}.WPING.{namespace}.{workload}"),
    }
}

/// `$NEX.INFO.{namespace}.{node}`; `*` as the namespace to subscribe.
#[must_use]
pub fn info(namespace: impl Display, node: impl Display) -> String {
    format!("{PREFIX}.INFO.{namespace}.{node}")
}

/// `$NEX.DEPLOY.{namespace}.{node}`
#[must_use]
pub fn deploy(namespace: impl Display, node: impl Display) -> String {
    format!("{PREFIX}.DEPLOY.{namespace}.{node}")
}

/// `$NEX.STOP.{namespace}.{node}`
#[must_use]
pub fn stop(namespace: impl Display, node: impl Display) -> String {
    format!("{PREFIX}.STOP.{namespace}.{node}")
}

/// `$NEX.LAMEDUCK.{node}`
#[must_use]
pub fn lameduck(node: impl Display) -> String {
    format!("{PREFIX}.LAMEDUCK.{node}")
}

/// `$NEX.events.{namespace}.{type}`
#[must_use]
pub fn events(namespace: impl Display, event_type: impl Display) -> String {
    format!("{PREFIX}.events.{namespace}.{event_type}")
}

/// `$NEX.logs.{namespace}.{node}.{workload name}.{workload ID}`; `*` for any part to subscribe.
#[must_use]
pub fn logs(namespace: impl Display, node: impl Display, workload: impl Display, id: impl Display) -> String {
    format!("{PREFIX}.logs.{namespace}.{node}.{workload}.{id}")
}

/// Whether a text can be a namespace or workload name: `[a-zA-Z0-9_-]+`, at most [`MAX_NAME_BYTES`].
#[must_use]
pub fn is_valid_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Checks a subject that a function is to be triggered on; wildcards are allowed.
///
/// # Errors
/// What is wrong with it, as the end of a sentence about the subject.
pub fn check_trigger_subject(subject: &str) -> Result<(), &'static str> {
    if subject.is_empty() {
        return Err("is empty");
    }
    if subject.len() > MAX_SUBJECT_BYTES {
        return Err("is longer than 1,024 bytes");
    }
    if subject.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("contains white space or control characters");
    }
    let mut tokens = subject.split('.').peekable();
    while let Some(token) = tokens.next() {
        if token.is_empty() {
            return Err("has an empty token (two dots in a row, or one at its start or end)");
        }
        if token == ">" && tokens.peek().is_some() {
            return Err("has the wildcard `>` before its last token");
        }
    }
    Ok(())
}

/// Whether some subject matches both patterns.
#[must_use]
pub fn overlap(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(x), Some(y)) if x == y || x == "*" || y == "*" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_patterns() {
        for (a, b, expected) in [
            ("$SYS.this.is.a.test", "$SYS.>", true),
            ("$JS.foo.bar", "$JS.>", true),
            ("bob.test", "$SYS.>", false),
            (">", "$NEX.>", true),
            ("*.x", "$NEX.>", true),
            ("$NEX", "$NEX.>", false),
            ("a.*.c", "a.b.*", true),
            ("a.*", "a.b.c", false),
            ("a.>", "a", false),
            ("a", "a", true),
        ] {
            assert_eq!(overlap(a, b), expected, "{a} {b}");
            assert_eq!(overlap(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn trigger_subjects() {
        for good in ["a", "a.b", "a.*.c", "a.>", ">", "*", "größe.x", "a*b"] {
            assert_eq!(check_trigger_subject(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a.>.b", "a\n", "a\0b"] {
            assert!(check_trigger_subject(bad).is_err(), "{bad:?}");
        }
        assert!(check_trigger_subject(&"a".repeat(1025)).is_err());
    }

    #[test]
    fn names() {
        for good in ["default", "a", "A-b_9"] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["", "a.b", "a b", "*", ">", "ä", "a/b"] {
            assert!(!is_valid_name(bad), "{bad}");
        }
        assert!(!is_valid_name(&"a".repeat(129)));
    }
}
