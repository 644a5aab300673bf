//! The nats-server of `nex node up --dev`.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use nex_host_services::nats_server::{NatsServer, NatsServerError, Options};

use crate::cli::failure::Failure;
use crate::cli::output;
use crate::connection::{Connection, ConnectionError, DEFAULT_SERVER};

/// The port that every NATS client tries by itself.
const USUAL_PORT: u16 = 4222;

/// A server that ends with this value.
pub(super) struct DevServer {
    server: NatsServer,
    store: Option<PathBuf>,
}

impl DevServer {
    /// Starts it, on the usual port if that is free.
    pub(super) async fn start(store: Option<PathBuf>) -> Result<Self, Failure> {
        let options = Options {
            store_dir: store.clone(),
            ..Options::default()
        };
        let server = tokio::task::spawn_blocking(move || start(options))
            .await
            .map_err(Failure::failed)?
            .map_err(Failure::failed)?;
        tracing::info!(url = server.url(), pid = server.pid(), "nats-server is up");
        Ok(Self { server, store })
    }

    /// How the node connects to it.
    pub(super) fn connection(&self) -> Result<Connection, ConnectionError> {
        Connection::to(&self.server.url(), concat!("nex-", env!("CARGO_PKG_VERSION")))
    }

    /// Tells how to use it.
    pub(super) fn announce(&self) -> Result<(), Failure> {
        let url = self.server.url();
        match &self.store {
            Some(store) => output::line(format_args!("Its NATS server keeps its data in {}", store.display()))?,
            None => output::line("Its NATS server keeps its data in a temporary directory, which ends with it")?,
        }
        output::line("\nIn another terminal:\n")?;
        if url != DEFAULT_SERVER {
            output::line(format_args!("  export NATS_URL={url}"))?;
        }
        output::line("  nex devrun FILE.js --trigger_subject greet\n  nex logs\n")
    }
}

fn start(options: Options) -> Result<NatsServer, NatsServerError> {
    if TcpListener::bind((Ipv4Addr::LOCALHOST, USUAL_PORT)).is_ok() {
        let usual = Options {
            port: USUAL_PORT,
            ..options.clone()
        };
        match NatsServer::start_with(usual) {
            // Somebody else may have taken the port meanwhile; if it is something else, it will show again.
            Err(NatsServerError::Ended { .. }) => {}
            started => return started,
        }
    }
    NatsServer::start_with(options)
}
