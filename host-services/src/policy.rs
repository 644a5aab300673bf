//! What one workload may use: its default buckets, other buckets, subjects.
//!
//! # Default buckets
//! Namespace `ns` and workload `wl` own the key-value bucket `hs_ns_wl_kv` and the object bucket `hs_ns_wl_obj`. The
//! namespace is free text and both names may have underscores, so the plain form is only used where it cannot be read in
//! two ways: if the namespace has letters, digits and `-` only, the first `_` after `hs_` ends it. Any other pair gets
//! `hs__{namespace}_{workload}_{hash}_kv`, with what NATS disallows replaced by `_`, both names cut to 32 characters, and
//! 32 hexadecimal digits of the SHA-256 of both names. A plain form never has `hs__`, so no choice of names lets two
//! workloads share a bucket.
//!
//! # Other buckets
//! Names that begin with `hs_` belong to their workloads and names that begin with `NEX` to nex itself (artefacts, node
//! state); both are denied. Any other bucket may be opened, unless the configuration lists the allowed ones.
//!
//! # Subjects
//! [`RESERVED_SUBJECTS`] are always denied for publish and request; the configuration can add to them. `_INBOX.>` stays
//! open, because that is where replies go.

use nex_runtime::host_services::HostError;
use sha2::{Digest, Sha256};

use crate::error::{denied, invalid};
use crate::names::{SubjectPattern, check_bucket, check_subject, is_bucket_byte};
use crate::services::Config;

/// Subjects no function may publish to: the server, JetStream and its stores (which would go around the bucket rules),
/// and the control interface of nex.
pub const RESERVED_SUBJECTS: [&str; 5] = ["$SYS.>", "$JS.>", "$KV.>", "$O.>", "$NEX.>"];

/// The rules for one workload.
#[derive(Debug, Clone)]
pub struct Policy {
    namespace: String,
    workload: String,
    config: Config,
    kv_bucket: String,
    object_bucket: String,
}

/// A bucket a workload may use, and how to create it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Name, checked.
    pub name: String,
    /// Bytes it may hold, if it is created now; an existing bucket keeps its own limit.
    pub max_bytes: u64,
    /// Whether it is created if it does not exist.
    pub auto_provision: bool,
}

impl Policy {
    /// The rules of this configuration for the workload of this name in this namespace.
    #[must_use]
    pub fn new(namespace: impl Into<String>, workload: impl Into<String>, config: Config) -> Self {
        let (namespace, workload) = (namespace.into(), workload.into());
        Self {
            kv_bucket: default_bucket(&namespace, &workload, "kv"),
            object_bucket: default_bucket(&namespace, &workload, "obj"),
            namespace,
            workload,
            config,
        }
    }

    /// Namespace of the workload.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Name of the workload.
    #[must_use]
    pub fn workload(&self) -> &str {
        &self.workload
    }

    /// The configuration it was made from.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Name of the workload's own key-value bucket.
    #[must_use]
    pub fn default_kv_bucket(&self) -> &str {
        &self.kv_bucket
    }

    /// Name of the workload's own object bucket.
    #[must_use]
    pub fn default_object_bucket(&self) -> &str {
        &self.object_bucket
    }

    /// The key-value bucket a request means.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a malformed name, `PERMISSION_DENIED` for a bucket that is not the workload's to open.
    pub fn kv_bucket(&self, requested: Option<&str>) -> Result<Bucket, HostError> {
        let config = &self.config.kv.config;
        Ok(Bucket {
            name: choose_bucket(&self.kv_bucket, requested, config.allowed_buckets.as_deref())?,
            max_bytes: config.max_bytes.get(),
            auto_provision: config.auto_provision,
        })
    }

    /// The object bucket a request means.
    ///
    /// # Errors
    /// As [`kv_bucket`](Self::kv_bucket).
    pub fn object_bucket(&self, requested: Option<&str>) -> Result<Bucket, HostError> {
        let config = &self.config.objectstore.config;
        Ok(Bucket {
            name: choose_bucket(&self.object_bucket, requested, config.allowed_buckets.as_deref())?,
            max_bytes: config.max_bytes.get(),
            auto_provision: config.auto_provision,
        })
    }

    /// Checks a subject a function wants to publish to.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a malformed one, `PERMISSION_DENIED` for one that is reserved.
    pub fn check_publish(&self, subject: &str) -> Result<(), HostError> {
        check_subject(subject)?;
        let reserved = RESERVED_SUBJECTS.map(|pattern| pattern.trim_end_matches('>'));
        let by_prefix = reserved.iter().find(|prefix| subject.starts_with(**prefix));
        let by_config = || {
            let denied = &self.config.messaging.config.deny_subjects;
            denied.iter().find(|pattern| pattern.matches(subject))
        };
        let rule = by_prefix
            .map(|prefix| format!("{prefix}>"))
            .or_else(|| by_config().map(SubjectPattern::to_string));
        match rule {
            Some(rule) => Err(denied(format!(
                "subject {subject:?} is not allowed: functions may not publish to {rule:?}"
            ))),
            None => Ok(()),
        }
    }
}

fn choose_bucket(own: &str, requested: Option<&str>, allowed: Option<&[String]>) -> Result<String, HostError> {
    let Some(name) = requested.filter(|name| *name != own) else {
        return Ok(own.to_owned());
    };
    check_bucket(name)?;
    if name.starts_with("hs_") {
        return Err(denied(format!(
            "bucket {name:?} is not allowed: it belongs to another workload"
        )));
    }
    if name.starts_with("NEX") {
        return Err(denied(format!(
            "bucket {name:?} is not allowed: it belongs to nex itself"
        )));
    }
    if allowed.is_some_and(|allowed| !allowed.iter().any(|a| a == name)) {
        return Err(denied(format!(
            "bucket {name:?} is not allowed: it is not in the node's allowed_buckets"
        )));
    }
    Ok(name.to_owned())
}

/// The name of a workload's own bucket; see the module's page for the rule.
fn default_bucket(namespace: &str, workload: &str, suffix: &str) -> String {
    let unambiguous = !namespace.is_empty()
        && !workload.is_empty()
        && namespace.bytes().all(|b| is_bucket_byte(b) && b != b'_')
        && workload.bytes().all(is_bucket_byte)
        && namespace.len() + workload.len() <= 200;
    if unambiguous {
        return format!("hs_{namespace}_{workload}_{suffix}");
    }
    let readable = |name: &str| -> String {
        let legal = |c: char| u8::try_from(c).is_ok_and(is_bucket_byte);
        name.chars().take(32).map(|c| if legal(c) { c } else { '_' }).collect()
    };
    // The length goes first so that no two pairs hash the same bytes.
    let mut hash = Sha256::new();
    hash.update((namespace.len() as u64).to_be_bytes());
    hash.update(namespace);
    hash.update(workload);
    let hash = data_encoding::HEXLOWER.encode(&hash.finalize()[..16]);
    format!("hs__{}_{}_{hash}_{suffix}", readable(namespace), readable(workload))
}

/// An absolute `http` or `https` URL with a host. Every URL of the HTTP service passes here, those of redirects included;
/// rules about addresses belong here.
pub(crate) fn check_url(url: &url::Url) -> Result<(), HostError> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(invalid(format!(
            "URL scheme {:?} is not supported, only http and https",
            url.scheme()
        )));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(invalid("URL has no host"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use std::collections::HashSet;

    use nex_runtime::host_services::HostErrorCode;

    use super::*;

    fn code<T: std::fmt::Debug>(result: Result<T, HostError>) -> HostErrorCode {
        result.unwrap_err().code
    }

    #[test]
    fn plain_names_are_the_documented_ones() {
        let policy = Policy::new("default", "echo_2-b", Config::default());
        assert_eq!(policy.default_kv_bucket(), "hs_default_echo_2-b_kv");
        assert_eq!(policy.default_object_bucket(), "hs_default_echo_2-b_obj");
    }

    #[test]
    fn no_two_workloads_share_a_bucket() {
        let long = "x".repeat(300);
        let names = [
            "a", "a_b", "a_b_c", "b", "b_c", "_", "__", "a.b", "a b", "ä", "ö", "a_", "_a", "-", "", "日本", &long,
        ];
        let mut seen = HashSet::new();
        for namespace in names {
            for workload in names {
                let bucket = default_bucket(namespace, workload, "kv");
                check_bucket(&bucket).unwrap();
                assert!(seen.insert(bucket.clone()), "{namespace:?} {workload:?} {bucket}");
            }
        }
        // A workload named after the hashed bucket of another still gets one of its own.
        let victim = default_bucket("my_team", "w", "kv");
        let imitation = victim.trim_start_matches("hs_").trim_end_matches("_kv");
        for namespace in ["", "my", "my_team"] {
            assert_ne!(default_bucket(namespace, imitation, "kv"), victim);
        }
    }

    #[test]
    fn buckets_allowed_not_allowed_not_listed() {
        let open = Policy::new("ns", "wl", Config::default());
        assert_eq!(open.kv_bucket(None).unwrap().name, "hs_ns_wl_kv");
        assert_eq!(open.kv_bucket(Some("hs_ns_wl_kv")).unwrap().name, "hs_ns_wl_kv");
        assert_eq!(open.kv_bucket(Some("shared")).unwrap().name, "shared");
        assert_eq!(
            code(open.kv_bucket(Some("hs_ns_other_kv"))),
            HostErrorCode::PermissionDenied
        );
        assert_eq!(
            code(open.object_bucket(Some("hs_ns_wl_kv"))),
            HostErrorCode::PermissionDenied
        );
        assert_eq!(
            code(open.object_bucket(Some("NEXCLIFILES"))),
            HostErrorCode::PermissionDenied
        );
        assert_eq!(code(open.kv_bucket(Some("a.b"))), HostErrorCode::InvalidArgument);
        assert_eq!(code(open.kv_bucket(Some(""))), HostErrorCode::InvalidArgument);

        let mut config = Config::default();
        config.kv.config.allowed_buckets = Some(vec!["listed".to_owned()]);
        let listed = Policy::new("ns", "wl", config);
        assert_eq!(listed.kv_bucket(None).unwrap().name, "hs_ns_wl_kv");
        assert_eq!(listed.kv_bucket(Some("listed")).unwrap().name, "listed");
        assert_eq!(code(listed.kv_bucket(Some("shared"))), HostErrorCode::PermissionDenied);
        assert_eq!(listed.object_bucket(Some("shared")).unwrap().name, "shared");
    }

    #[test]
    fn reserved_subjects() {
        let mut config = Config::default();
        config.messaging.config.deny_subjects = vec![SubjectPattern::new("billing.*").unwrap()];
        let policy = Policy::new("ns", "wl", config);
        for subject in [
            "$SYS.REQ",
            "$JS.API.INFO",
            "$NEX.PING",
            "$KV.b.k",
            "$O.b.M.x",
            "billing.pay",
        ] {
            assert_eq!(
                code(policy.check_publish(subject)),
                HostErrorCode::PermissionDenied,
                "{subject}"
            );
        }
        for subject in ["a", "_INBOX.x.y", "$SRV.PING", "$KVX.a", "billing", "billing.a.b"] {
            policy.check_publish(subject).unwrap();
        }
        assert_eq!(code(policy.check_publish("a.*")), HostErrorCode::InvalidArgument);
    }
}
