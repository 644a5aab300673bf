//! The program's own log: to standard error, so that results on standard output stay clean.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::args::{Global, Level};

/// Starts logging. A node tells what it does; other commands speak up only when something is wrong.
pub(super) fn init(global: &Global, is_node: bool) {
    let filter = match (global.loglevel, is_node) {
        // The NATS client reports every connection at `info`, without saying whose it is.
        (None | Some(Level::Info), true) | (Some(Level::Info), false) => "info,async_nats=warn",
        // It also logs an error when it cannot connect, which is this program's own last line in more words.
        (None, false) => "warn,async_nats::connector=off",
        (Some(level), _) => level.as_str(),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    // It can only fail if a subscriber is there already, as in a test that runs two commands.
    _ = if global.logjson {
        builder.json().try_init()
    } else {
        builder.try_init()
    };
}
