//! Machines behind a node: from a deployment to the first reply, and calls through them, over NATS.

use std::time::Instant;

use anyhow::{Result, ensure};
use bytes::Bytes;
use nex_node::machines::DriverKind;

use super::lab::Lab;
use super::node::TestNode;
use super::{Scale, Times, millis, replacement, section};
use crate::Options;
use crate::contender::{Process, fixture};
use crate::echo::{self, Contender};
use crate::report::Table;

/// Requests in flight.
const WINDOWS: [usize; 2] = [1, 64];
/// Payload bytes.
const SIZE: usize = 128;

/// Measures nodes over all drivers, and one that has its functions in its own process. Reports in Markdown.
pub(super) async fn run(
    lab: &Lab,
    drivers: &[DriverKind],
    url: &str,
    options: &Options,
    scale: Scale,
) -> Result<String> {
    let mut nodes = Vec::new();
    for &kind in [DriverKind::InProcess].iter().chain(drivers) {
        eprintln!("a node over {kind}");
        nodes.push(TestNode::start(lab, kind, url).await?);
    }
    let mut body = first_replies(&nodes, scale.deploys).await?;
    body += &calls(&nodes, url, options).await?;
    body += &replacement::run(&nodes, scale.faults).await?;
    for node in nodes {
        node.end().await?;
    }
    Ok(body)
}

async fn first_replies(nodes: &[TestNode], count: usize) -> Result<String> {
    let source = std::fs::read_to_string(fixture("identity.mjs"))?;
    let payload = Bytes::from_static(b"are you there?");
    let mut measured = vec![(Times::default(), Times::default()); nodes.len()];
    for round in 0..=count {
        for (node, (accepted, replied)) in nodes.iter().zip(&mut measured) {
            eprintln!("first reply, {round} of {count}: {}", node.kind);
            node.warm().await?;
            let subject = format!("first.{}.{round}", node.kind);
            let request = node.prepare(&source, &subject).await?;
            let began = Instant::now();
            let function = node.deploy(&format!("first-{round}"), &request).await?;
            let until_accepted = began.elapsed();
            let reply = node.call(&subject, &payload).await?;
            let until_replied = began.elapsed();
            ensure!(
                reply.as_ref() == Some(&payload),
                "{}: a wrong first reply: {reply:?}",
                node.kind
            );
            node.stop(function).await?;
            if round > 0 {
                accepted.push(until_accepted);
                replied.push(until_replied);
            }
        }
    }
    let base = measured.first().map_or(f64::NAN, |(_, replied)| replied.median());
    let mut table = Table::new(&[
        "",
        "accepted: p50 ms",
        "first reply: p50 ms",
        "p95 ms",
        "max ms",
        "of in_process",
    ]);
    for (node, (accepted, replied)) in nodes.iter().zip(&measured) {
        table.row(&[
            node.kind.to_string(),
            millis(accepted.median()),
            millis(replied.median()),
            millis(replied.quantile(0.95)),
            millis(replied.max()),
            format!("{:.2}", replied.median() / base),
        ]);
    }
    let about = format!(
        "{count} deployments each, drivers in turn, into namespaces that have no machine yet, while one is warm. From when \
         the request is sent; the artefact has been uploaded before. The pool starts the next warm machine meanwhile."
    );
    Ok(section("Deploy to first reply", &about, table))
}

async fn calls(nodes: &[TestNode], url: &str, options: &Options) -> Result<String> {
    let source = std::fs::read_to_string(fixture("identity.mjs"))?;
    let log = tempfile::tempdir()?;
    let native = Process::native_echo(url, "calls.native", &log.path().join("native.log")).await?;
    let mut contenders = vec![Contender::new(url, "native async-nats echo", "calls.native", &native).await?];
    let mut functions = Vec::new();
    for node in nodes {
        let subject = format!("calls.{}", node.kind);
        let request = node.prepare(&source, &subject).await?;
        functions.push(node.deploy("calls", &request).await?);
        // The next warm machine starts now, and not while calls are measured.
        node.warm().await?;
        contenders.push(Contender::new(url, node.kind.as_str(), &subject, &node.process).await?);
    }
    let mut text = String::new();
    for window in WINDOWS {
        text += &echo::closed_loop(options, &mut contenders, window, SIZE).await?;
    }
    for (node, function) in nodes.iter().zip(functions) {
        node.stop(function).await?;
    }
    Ok(text.replace("### ", "### Calls, "))
}
