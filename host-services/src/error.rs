//! Short constructors for [`HostError`], one per class, so that call sites read as sentences.

use std::error::Error;

use nex_runtime::host_services::{HostError, HostErrorCode};

pub(crate) fn invalid(message: impl Into<String>) -> HostError {
    HostError::new(HostErrorCode::InvalidArgument, message)
}

pub(crate) fn not_found(message: impl Into<String>) -> HostError {
    HostError::new(HostErrorCode::NotFound, message)
}

pub(crate) fn denied(message: impl Into<String>) -> HostError {
    HostError::new(HostErrorCode::PermissionDenied, message)
}

pub(crate) fn limit(message: impl Into<String>) -> HostError {
    HostError::new(HostErrorCode::LimitExceeded, message)
}

pub(crate) fn timeout(message: impl Into<String>) -> HostError {
    HostError::new(HostErrorCode::Timeout, message)
}

pub(crate) fn no_responders(subject: &str) -> HostError {
    HostError::new(HostErrorCode::NoResponders, format!("nobody listens on {subject:?}"))
}

pub(crate) fn unavailable(message: impl Into<String>) -> HostError {
    HostError::new(HostErrorCode::Unavailable, message)
}

pub(crate) fn internal(message: impl Into<String>) -> HostError {
    HostError::new(HostErrorCode::Internal, message)
}

/// The error and its causes on one line, without the repetitions of errors that print their own source.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
