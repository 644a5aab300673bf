//! Nex beside what somebody might use instead, in one run: an echo and cold starts, of nex, of Node.js with the official
//! NATS client, and of workerd and Deno behind a bridge and by themselves. `benches/README.md` says how each is driven and
//! why that is fair.

pub(crate) mod bridge;
mod bundle;
mod cold;
mod echo;
mod figures;
mod http;
mod launch;
mod nex;
mod plot;
mod setup;
#[cfg(test)]
mod test_server;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use nex_host_services::nats_server::{NatsServer, Options as ServerOptions, find_binary};
use nex_node::bench::machine;

use self::figures::Missing;
use self::launch::Folder;
use self::setup::Rivals;
use crate::{Options, publish, report};

/// Functions of each size started by each contender with `--quick`.
const QUICK_FUNCTIONS: usize = 2;

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    options: Options,
    /// Functions of each size that each contender starts
    #[arg(long, default_value_t = 200)]
    functions: usize,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["echo", "cold"])]
    parts: Vec<Part>,
    /// Draw the result, as SVG, into this file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Throughput, latency and processor time of an echo
    Echo,
    /// First calls of functions that nothing runs yet
    Cold,
}

/// Runs it all, reports, and fails if somebody could not be measured.
pub(crate) async fn run(args: Args) -> Result<()> {
    let options = args.options.resolved();
    let functions = if options.quick { QUICK_FUNCTIONS } else { args.functions };
    let rivals = Rivals::install()?;
    let binary = find_binary()?;
    let server = NatsServer::start_with(ServerOptions {
        binary: Some(binary.clone()),
        ..ServerOptions::default()
    })?;
    let folder = Folder::new()?;

    let mut machine = report::machine();
    machine.nats_server_version = machine::nats_server_version(&binary);
    let mut body = String::new();
    let mut sections = Vec::new();
    let mut missing = Vec::new();
    if args.parts.contains(&Part::Echo) {
        let results = echo::run(&options, &server.url(), &rivals, &folder).await?;
        body += &results.markdown;
        sections.push(results.plot);
        missing.extend(results.missing);
    }
    if args.parts.contains(&Part::Cold) {
        let results = cold::run(&options, functions, &rivals, &folder).await?;
        body += &results.markdown;
        sections.push(results.plot);
        missing.extend(results.missing);
    }
    machine.finish();

    let mut facts = machine.facts();
    let footer = facts
        .iter()
        .filter(|(name, _)| ["Date", "Commit", "Processor", "Kernel"].contains(name))
        .map(|(_, value)| value.as_str())
        .collect::<Vec<_>>()
        .join(" · ");
    facts.push(("Rivals", rivals.versions()));
    facts.push(("Measurement", measurement(&options)));
    let mut text = report::heading("Rivals side by side", &facts);
    if let Some(plot) = &args.plot {
        std::fs::write(plot, plot::svg(&sections, &footer))
            .with_context(|| format!("cannot write {}", plot.display()))?;
        text += &format!(
            "![The medians as bars]({})\n\n",
            link(plot, options.append.as_deref()).display()
        );
    }
    text += &body;
    text += &not_measured(&missing);
    publish(&options, &text)?;
    ensure!(
        missing.is_empty(),
        "not everybody was measured:\n{}",
        not_measured(&missing)
    );
    Ok(())
}

fn measurement(options: &Options) -> String {
    format!(
        "{} repeats, contenders in turn, {} s each and a fifth of it before as warm-up for an echo; every reply compared \
         with what it must be, failed starts counted as 10 s; medians, with the 95 % bootstrap interval of the \
         repeats' median; a ratio is that of the same repeat; quantiles of all repeats together; CPU is the contender's, \
         the bridge included, without nats-server and load generator, which share the machine",
        options.repeats, options.seconds
    )
}

fn not_measured(missing: &[Missing]) -> String {
    let mut text = String::new();
    for Missing { label, reason } in missing {
        // Writing to a string cannot fail.
        _ = writeln!(text, "- {label}: not measured, {}", reason.replace('\n', " "));
    }
    text
}

/// The plot, seen from the text that shows it.
fn link<'a>(plot: &'a Path, text: Option<&Path>) -> &'a Path {
    match (text.and_then(Path::parent), plot.parent(), plot.file_name()) {
        (Some(folder), Some(parent), Some(name)) if folder == parent => Path::new(name),
        _ => plot,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_beside_the_text_is_linked_by_name() {
        let plot = Path::new("benches/rivals.svg");
        assert_eq!(
            link(plot, Some(Path::new("benches/RESULTS.md"))),
            Path::new("rivals.svg")
        );
        assert_eq!(link(plot, Some(Path::new("RESULTS.md"))), plot);
        assert_eq!(link(plot, None), plot);
    }

    #[test]
    fn nobody_is_dropped_silently() {
        let missing = Missing {
            label: "Deno",
            reason: "no such\nfile".to_owned(),
        };
        assert_eq!(not_measured(&[missing]), "- Deno: not measured, no such file\n");
    }
}
