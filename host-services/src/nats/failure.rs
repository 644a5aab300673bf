//! From the many error types of async-nats to the few things that matter here: the bucket is gone, the bucket is full,
//! somebody else was faster, or a [`HostError`] for the function.
//!
//! async-nats nests one error type per operation; the decisive one may be at any depth, so the whole chain is searched.

use std::error::Error;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::{
    CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind, PublishError, PublishErrorKind,
    RequestError, RequestErrorKind,
};
use async_nats::jetstream::stream::{
    ConsumerError, ConsumerErrorKind, DirectGetError, DirectGetErrorKind, LastRawMessageError, LastRawMessageErrorKind,
    PurgeError, PurgeErrorKind,
};
use async_nats::jetstream::{self, ErrorCode};
use nex_runtime::host_services::{HostError, HostErrorCode};

use crate::error::{chain, internal, limit, not_found, timeout, unavailable};

/// Why an operation on a bucket failed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Failure {
    /// The stream behind the bucket does not exist (any more).
    Gone,
    /// A limit of the bucket, the account or the server is reached.
    Full(String),
    /// The subject has changed since it was read, or the stream exists already or is just being removed.
    Conflict,
    /// Anything else.
    Other(HostError),
}

impl Failure {
    /// What the function gets to see.
    pub(crate) fn of_bucket(self, bucket: &str) -> HostError {
        match self {
            Self::Gone => not_found(format!("bucket {bucket:?} does not exist")),
            Self::Full(reason) => limit(format!("bucket {bucket:?} has no room: {reason}")),
            Self::Conflict => unavailable(format!("bucket {bucket:?} is too busy, try again")),
            Self::Other(error) => error,
        }
    }
}

/// Finds the decisive error in a chain.
pub(crate) fn classify(error: &(dyn Error + 'static)) -> Failure {
    let mut next = Some(error);
    while let Some(link) = next {
        if let Some(failure) = decisive(link) {
            return failure;
        }
        next = link.source();
    }
    // Some conversions of async-nats keep the kind "timed out" and drop the source it came from.
    let text = chain(error);
    Failure::Other(if text.contains("timed out") {
        timeout(text)
    } else {
        internal(text)
    })
}

fn decisive(error: &(dyn Error + 'static)) -> Option<Failure> {
    let timed_out = || Failure::Other(timeout("JetStream did not answer in time"));
    let no_jetstream = || Failure::Other(unavailable("JetStream is not available on this connection"));

    if let Some(error) = error.downcast_ref::<jetstream::Error>() {
        return Some(api(error));
    }
    if let Some(error) = error.downcast_ref::<PublishError>() {
        return match error.kind() {
            PublishErrorKind::StreamNotFound => Some(Failure::Gone),
            PublishErrorKind::TimedOut => Some(timed_out()),
            PublishErrorKind::WrongLastSequence => Some(Failure::Conflict),
            PublishErrorKind::MaxPayloadExceeded => Some(Failure::Full(chain(error))),
            PublishErrorKind::BrokenPipe => Some(Failure::Other(unavailable(chain(error)))),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<DirectGetError>() {
        return match error.kind() {
            DirectGetErrorKind::TimedOut => Some(timed_out()),
            // No responders: the stream's direct-get subscription went with the stream.
            DirectGetErrorKind::ErrorResponse(status, _) if status.as_u16() == 503 => Some(Failure::Gone),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<RequestError>() {
        return match error.kind() {
            RequestErrorKind::NoResponders => Some(no_jetstream()),
            RequestErrorKind::TimedOut => Some(timed_out()),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<CreateStreamError>() {
        return match error.kind() {
            CreateStreamErrorKind::JetStream(error) => Some(api(&error)),
            CreateStreamErrorKind::JetStreamUnavailable => Some(no_jetstream()),
            CreateStreamErrorKind::TimedOut => Some(timed_out()),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<GetStreamError>() {
        return match error.kind() {
            GetStreamErrorKind::JetStream(error) => Some(api(&error)),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<ConsumerError>() {
        return match error.kind() {
            ConsumerErrorKind::JetStream(error) => Some(api(&error)),
            ConsumerErrorKind::TimedOut => Some(timed_out()),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<PurgeError>() {
        return match error.kind() {
            PurgeErrorKind::JetStream(error) => Some(api(&error)),
            PurgeErrorKind::TimedOut => Some(timed_out()),
            PurgeErrorKind::Request => None,
        };
    }
    if let Some(error) = error.downcast_ref::<LastRawMessageError>() {
        return match error.kind() {
            LastRawMessageErrorKind::JetStream(error) => Some(api(&error)),
            _ => None,
        };
    }
    None
}

/// What an error response of the JetStream API means.
fn api(error: &jetstream::Error) -> Failure {
    match error.error_code() {
        ErrorCode::STREAM_NOT_FOUND => Failure::Gone,
        // Creating a stream right after one of this name was deleted may find files that are still being removed.
        ErrorCode::STREAM_CREATE
        | ErrorCode::STREAM_NAME_EXIST
        | ErrorCode::STREAM_WRONG_LAST_SEQUENCE
        | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => Failure::Conflict,
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::MAXIMUM_STREAMS_LIMIT
        | ErrorCode::STREAM_MAX_STREAM_BYTES_EXCEEDED
        | ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => Failure::Full(error.to_string()),
        // The server has one code for all that can go wrong while storing; the text tells a full stream from a bad disk.
        ErrorCode::STREAM_STORE_FAILED if error.to_string().contains("maximum") => Failure::Full(error.to_string()),
        _ => match error.code() {
            503 => Failure::Other(unavailable(error.to_string())),
            _ => Failure::Other(internal(error.to_string())),
        },
    }
}

/// Runs an operation for at most this long. On a broken connection running out of time means `UNAVAILABLE`.
pub(crate) async fn within<R>(
    limit: Duration,
    client: &async_nats::Client,
    operation: impl Future<Output = Result<R, HostError>>,
) -> Result<R, HostError> {
    match tokio::time::timeout(limit, operation).await {
        // One of the round trips may run out of time just before the whole does.
        Ok(Err(error)) if error.code == HostErrorCode::Timeout => Err(no_answer(limit, client)),
        Ok(result) => result,
        Err(_) => Err(no_answer(limit, client)),
    }
}

/// The error for an operation that ran out of time.
pub(crate) fn no_answer(limit: Duration, client: &async_nats::Client) -> HostError {
    if client.connection_state() == State::Connected {
        timeout(format!("no answer within {} ms", limit.as_millis()))
    } else {
        unavailable("not connected to the NATS server")
    }
}
