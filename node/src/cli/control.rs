//! The connection of a command to its nodes, and how their answers become results and failures.

use std::time::Duration;

use async_nats::{Client, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::SelectAll;

use super::args::Global;
use super::failure::Failure;
use crate::connection::Connection;
use crate::control::{ControlClient, ControlError};

/// A connected command.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) nats: Client,
    /// Speaks to nodes, in the namespace of the global flags.
    pub(super) control: ControlClient,
}

impl Session {
    /// Connects as the global flags say.
    pub(super) async fn open(global: &Global) -> Result<Self, Failure> {
        let connection = global.connection()?;
        let nats = connection.connect().await?;
        let control = ControlClient::new(nats.clone(), &global.namespace, connection.timeout);
        Ok(Self {
            connection,
            nats,
            control,
        })
    }

    /// Subscribes to subjects and returns once the server knows it, so that nothing sent from now on is missed.
    pub(super) async fn follow(&self, subjects: &[String]) -> Result<SelectAll<Subscriber>, Failure> {
        let mut streams = SelectAll::new();
        for subject in subjects {
            streams.push(
                self.nats
                    .subscribe(subject.clone())
                    .await
                    .map_err(Failure::unreachable)?,
            );
        }
        // A round trip: a flush alone only says that the subscription has left this process. Users who may not publish
        // get no echo; they wait for the timeout and can miss nothing either.
        let probe = self.nats.new_inbox();
        let mut echo = self.nats.subscribe(probe.clone()).await.map_err(Failure::unreachable)?;
        self.nats
            .publish(probe, Bytes::new())
            .await
            .map_err(Failure::unreachable)?;
        _ = tokio::time::timeout(self.connection.timeout, echo.next()).await;
        tracing::info!(subjects = subjects.join(" "), "following");
        Ok(streams)
    }

    /// The failure of a command that follows messages until the connection ends.
    pub(super) fn lost(&self) -> Failure {
        Failure::unreachable(format_args!(
            "the connection to the NATS server at {} is lost",
            self.connection.servers()
        ))
    }

    /// The control client for requests that make a node work: it waits at least this long.
    pub(super) fn patient(&self, at_least: Duration) -> ControlClient {
        self.control.with_timeout(self.connection.timeout.max(at_least))
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::InvalidToken { .. } => Self::usage(error),
            ControlError::NoResponders(_) | ControlError::Timeout { .. } | ControlError::Nats(_) => {
                Self::unreachable(error)
            }
            _ => Self::failed(error),
        }
    }
}

/// A failure with what was attempted in front of it.
pub(super) fn while_doing(what: &str) -> impl Fn(ControlError) -> Failure + '_ {
    move |error| Failure::from(error).map(|message| format!("{what}: {message}"))
}
