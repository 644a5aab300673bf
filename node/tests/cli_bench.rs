//! `nex bench` in process, against a real node, and against what goes wrong: what it reports, and what it leaves behind.
//! No figure is of interest here.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use async_nats::jetstream;
use futures::TryStreamExt as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{Cluster, Node};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(120);

/// Next to nothing: two repeats of everything.
const TINY: [&str; 4] = ["--repeats", "2", "--warm-up", "20ms"];

/// The program, which could not reach a server if it tried.
fn nex(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nex"));
    command
        .args(arguments)
        .env("NATS_URL", "nats://127.0.0.1:1")
        .env_remove("NATS_CONTEXT")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn run(mut command: Command) -> Output {
    timeout(PATIENCE, command.output()).await.expect("ends").unwrap()
}

#[track_caller]
fn ends(output: &Output, status: i32, words: &[&str]) -> String {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(status), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in: {text}");
    }
    text
}

#[track_caller]
fn report(output: &Output) -> Value {
    ends(output, 0, &[]);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The variants of a benchmark in a report.
#[track_caller]
fn variants<'a>(report: &'a Value, benchmark: &str) -> &'a Vec<Value> {
    let benchmarks = report["benchmarks"].as_array().unwrap();
    let found = benchmarks.iter().find(|found| found["benchmark"] == benchmark);
    let variants = found.unwrap_or_else(|| panic!("no {benchmark} in {report}"))["variants"].as_array();
    for variant in variants.unwrap() {
        assert_eq!(variant["failures"]["first"], Value::Null, "{variant}");
        assert!(variant["calls"].as_u64().unwrap() > 0, "{variant}");
    }
    variants.unwrap()
}

/// A figure has a median within its interval, and as many repeats as there were.
#[track_caller]
fn figure(variant: &Value, name: &str, repeats: usize) -> f64 {
    let figure = &variant["figures"][name];
    let number = |key: &str| {
        figure[key]
            .as_f64()
            .unwrap_or_else(|| panic!("no {key} of {name} in {variant}"))
    };
    assert!(number("ci95_low") <= number("median") && number("median") <= number("ci95_high"));
    assert_eq!(figure["repeats"].as_array().unwrap().len(), repeats, "{figure}");
    number("median")
}

#[track_caller]
fn latencies(variant: &Value, calls: u64) {
    assert!(figure(variant, "latency_p50_us", 2) <= figure(variant, "latency_max_us", 2));
    assert_eq!(variant["calls"], calls);
    let curve = variant["percentiles"].as_array().unwrap();
    assert_eq!(curve.last().unwrap()["quantile"], 1.0);
    // The 99.9th percentile of so few calls would be made up.
    assert_eq!(variant["figures"]["latency_p99_9_us"], Value::Null);
}

/// There were machines, of which it is told how they started and what they take.
#[track_caller]
fn machines(report: &Value) {
    let machines = &report["machines"];
    let number = |key: &str| {
        machines[key]
            .as_u64()
            .unwrap_or_else(|| panic!("no {key} in {machines}"))
    };
    assert!(number("count") > 0);
    assert_eq!(number("booted") + number("restored"), number("count"), "{machines}");
    assert!(0 < number("start_p50_us") && number("start_p50_us") <= number("start_max_us"));
    assert!(number("machine_host_bytes") > 1 << 20, "{machines}");
}

#[tokio::test]
async fn all_in_process_as_json_and_as_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("all.html");
    let mut command = nex(&[
        "bench",
        "all",
        "--in-process",
        "--json",
        "--functions",
        "4",
        "--sizes",
        "1,20",
    ]);
    command
        .args([
            "--rate",
            "500",
            "--seconds",
            "0.1",
            "--window",
            "4",
            "--payload-size",
            "1000",
        ])
        .args(TINY)
        .arg("--html")
        .arg(&page);
    let report = report(&run(command).await);

    let environment = &report["environment"];
    for key in [
        "date",
        "command",
        "nex_version",
        "v8_version",
        "processor",
        "memory_mib",
        "kernel",
    ] {
        assert!(!environment[key].is_null(), "{key}: {environment}");
    }
    for key in ["load_average_before", "load_average_after"] {
        assert_eq!(environment[key].as_array().unwrap().len(), 3, "{environment}");
    }
    let settings = &report["settings"];
    assert_eq!(settings["target"], "in_process");
    assert_eq!(settings["driver"], "in_process");
    assert_eq!(report["machines"], Value::Null);
    assert_eq!(settings["repeats"], 2);
    assert_eq!(settings["payload_bytes"], 1000);

    let cold = variants(&report, "cold");
    let names: Vec<&str> = cold.iter().map(|variant| variant["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "1 KB, cold-P, code cache",
            "1 KB, cold-P",
            "1 KB, cold-E, code cache",
            "1 KB, cold-E",
            "20 KB, cold-P, code cache",
            "20 KB, cold-P",
            "20 KB, cold-E, code cache",
            "20 KB, cold-E"
        ]
    );
    for variant in cold {
        latencies(variant, 8);
    }
    let warm = variants(&report, "warm");
    latencies(&warm[0], 100);
    figure(&warm[0], "generator_lag_p99_us", 2);
    let timeline = warm[0]["timeline"].as_array().unwrap();
    let calls: u64 = timeline.iter().map(|part| part["calls"].as_u64().unwrap()).sum();
    assert_eq!(calls, 100);
    assert!(figure(&variants(&report, "throughput")[0], "calls_per_second", 2) > 0.0);
    let density = variants(&report, "density");
    assert_eq!((&density[0]["calls"], &density[1]["calls"]), (&json!(8), &json!(32)));
    // All that were to be awake were, and all that were to hibernate did.
    assert!(
        density
            .iter()
            .all(|variant| variant["notes"].is_null() || !variant["notes"].to_string().contains("were awake"))
    );
    let kib = figure(&density[0], "kib_per_function", 2);
    assert!(kib > 100.0, "an isolate takes no {kib} KiB");
    let memory = density[0]["memory"][0].as_array().unwrap();
    assert_eq!(memory.last().unwrap()["functions"], 4);
    let deploy = &variants(&report, "deploy")[0];
    assert!(figure(deploy, "accepted_p50_us", 2) < figure(deploy, "first_reply_p50_us", 2));

    let charts = well_formed(&page).await;
    // Histograms and percentiles of two sizes of cold, warm and throughput; over time; memory; repeats.
    assert!(charts >= 2 * 4 + 1 + 2 + 2 * 5, "{charts} charts");
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "nothing but the page"
    );
}

/// Parses a page, which must refer to nothing outside of it, and counts its charts, all of which must have a title.
async fn well_formed(page: &Path) -> usize {
    let script = r#"
import re, sys
import xml.etree.ElementTree as tree
text = open(sys.argv[1], encoding="utf-8").read()
page = tree.fromstring(text)
svg = "{http://www.w3.org/2000/svg}"
charts = list(page.iter(svg + "svg"))
for chart in charts:
    assert chart.get("role") == "img"
    assert chart.find(svg + "title").text and chart.find(svg + "desc").text
    assert chart.get("aria-label") == chart.find(svg + "title").text
    assert len(list(chart.iter())) > 10, "empty"
assert "NaN" not in text
names = {element.tag.split("}")[1] for element in page.iter()}
assert not names & {"script", "link", "img", "iframe", "use", "image"}, names
assert not any(name in ("src", "href") for element in page.iter() for name in element.keys())
assert not re.search(r"url\(|@import", text)
assert "prefers-color-scheme: dark" in text
print(len(charts))
"#;
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(page);
    let output = run(command).await;
    ends(&output, 0, &[]).trim().parse().unwrap()
}

#[tokio::test]
async fn machines_of_its_own_are_measured_without_a_node() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("machines.html");
    let mut command = nex(&["bench", "all", "--driver", "process", "--json", "--functions", "4"]);
    command
        .args(["--sizes", "1", "--rate", "200", "--seconds", "0.1", "--window", "4"])
        .args(TINY)
        .arg("--html")
        .arg(&page);
    let report = report(&run(command).await);
    let settings = &report["settings"];
    assert_eq!(
        (&settings["target"], &settings["driver"]),
        (&json!("machines"), &json!("process"))
    );
    machines(&report);
    latencies(&variants(&report, "cold")[0], 8);
    latencies(&variants(&report, "warm")[0], 40);
    assert!(figure(&variants(&report, "throughput")[0], "calls_per_second", 2) > 0.0);
    for (variant, calls) in variants(&report, "density").iter().zip([8, 32]) {
        assert_eq!(variant["calls"], calls);
        assert!(!variant["notes"].to_string().contains("not measurable"), "{variant}");
    }
    let deploy = &variants(&report, "deploy")[0];
    assert!(figure(deploy, "accepted_p50_us", 2) < figure(deploy, "first_reply_p50_us", 2));
    well_formed(&page).await;
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.contains("<th scope=\"row\">Driver</th><td>process</td>"), "{text}");
    assert!(text.contains("<th scope=\"row\">Machines</th>"), "{text}");
}

#[tokio::test]
async fn virtual_machines_are_measured_as_well() {
    let mut command = nex(&[
        "bench",
        "deploy",
        "--driver",
        "qemu",
        "--functions",
        "2",
        "--repeats",
        "1",
    ]);
    command.args(["--reply-timeout", "60s"]);
    let words = ["Driver: qemu", "first reply p50", "MiB of the host's memory each"];
    ends(&run(command).await, 0, &words);
}

#[tokio::test]
async fn people_get_a_table() {
    let mut command = nex(&["bench", "throughput", "--in-process", "--seconds", "0.05"]);
    command.args(TINY);
    let text = ends(
        &run(command).await,
        0,
        &[
            "Environment",
            "Processor",
            "Throughput (median [95 % interval])",
            "calls/s",
            "p99 µs",
            "Excluded:",
        ],
    );
    assert!(text.contains("128 B, 64 in flight"), "{text}");
    // Not a terminal: no progress bar.
    assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text:?}");
}

#[tokio::test]
async fn an_own_function_is_measured_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.js");
    let bench = async |source: &str, rest: &[&str]| {
        std::fs::write(&file, source).unwrap();
        let mut command = nex(&["bench", "warm", "--in-process", "--seconds", "0.1", "--rate", "200"]);
        command.args(TINY).args(["--json", "--function"]).arg(&file).args(rest);
        run(command).await
    };
    let greets = "(subject, payload) => 'hello ' + new TextDecoder().decode(payload)";
    let right = bench(greets, &["--payload", "Ada", "--expect", "hello Ada"]).await;
    let right = report(&right);
    assert_eq!(variants(&right, "warm")[0]["calls"], 40);
    assert_eq!(right["settings"]["payload_bytes"], 3);

    // Reported, counted as the longest wait, and a failure.
    let wrong = bench(
        greets,
        &["--payload", "Ada", "--expect", "hello Eve", "--reply-timeout", "3s"],
    )
    .await;
    ends(&wrong, 1, &["40 wrong replies"]);
    let wrong: Value = serde_json::from_slice(&wrong.stdout).unwrap();
    let variant = &wrong["benchmarks"][0]["variants"][0];
    assert_eq!(variant["failures"]["wrong"], 40);
    assert_eq!(variant["figures"]["latency_p50_us"]["median"], 3e6);

    let throws = bench("() => { throw new Error('always') }", &[]).await;
    ends(&throws, 1, &["40 errors", "always"]);
    let silent = bench(
        "() => new Promise((done) => setTimeout(done, 3600e3))",
        &["--reply-timeout", "100ms"],
    )
    .await;
    ends(&silent, 1, &["40 without reply"]);
    let broken = bench("() => {\n  let = ;\n}", &[]).await;
    let text = ends(&broken, 1, &["SyntaxError", &format!("{}:2:", file.display())]);
    assert!(!text.contains("benchmarks"), "{text}");
}

#[tokio::test]
async fn what_is_wrong_is_said_before_anything_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (nowhere, missing) = (path("no/such/page.html"), path("missing.js"));
    let cases: [(&[&str], i32, &str); 16] = [
        (
            &["warm", "--in-process", "--rate", "0"],
            2,
            "expected 0.001 to 1000000 calls per second",
        ),
        (&["warm", "--in-process", "--rate", "NaN"], 2, "calls per second"),
        (
            &["warm", "--in-process", "--rate", "1e6", "--seconds", "1000"],
            2,
            "100 million calls",
        ),
        (&["warm", "--in-process", "--seconds", "0"], 2, "--seconds"),
        (&["throughput", "--in-process", "--window", "0"], 2, "--window"),
        (&["cold", "--in-process", "--repeats", "0"], 2, "--repeats"),
        (&["cold", "--in-process", "--sizes", "0"], 2, "--sizes"),
        (&["density", "--in-process", "--functions", "0"], 2, "--functions"),
        (
            &["warm", "--in-process", "--html", &nowhere],
            2,
            "there is no directory",
        ),
        (
            &["warm", "--in-process", "--function", &missing],
            2,
            "cannot read the function",
        ),
        (&["warm", "--in-process", "--expect", "x"], 2, "--function"),
        (&["warm", "--in-process", "--node", "N"], 2, "cannot be used with"),
        (&["warm", "--in-process", "--driver", "qemu"], 2, "cannot be used with"),
        (&["warm", "--driver", "qemu", "--node", "N"], 2, "cannot be used with"),
        (&["warm", "--driver", "docker"], 2, "process, in_process"),
        (
            &["warm", "--driver", "qemu", "--resource-dir", &nowhere],
            2,
            "nex preflight --driver qemu",
        ),
    ];
    for (arguments, status, words) in cases {
        let mut command = nex(&["bench"]);
        command.args(arguments);
        let output = run(command).await;
        ends(&output, status, &[words]);
        assert!(output.stdout.is_empty());
    }
    let mut too_many = nex(&["bench", "density", "--in-process", "--functions", "100000"]);
    too_many.args(TINY);
    ends(&run(too_many).await, 1, &["MiB are available", "--functions"]);
    // Keys are made on first use, and belong to no test.
    let mut unreachable = nex(&["bench", "warm"]);
    unreachable.env("NEX_HOME", folder.path());
    ends(&run(unreachable).await, 3, &["cannot connect", "nats://127.0.0.1:1"]);
}

/// A cluster with a node.
struct Scene {
    // Dropped before the cluster, which has its log.
    node: Node,
    cluster: Cluster,
}

impl Scene {
    async fn set(config: Value) -> Self {
        let cluster = Cluster::start();
        let node = cluster.node("measured", config).await;
        Self { node, cluster }
    }

    fn bench(&self, arguments: &[&str]) -> Command {
        let mut command = self.cluster.nex(["bench"]);
        command.args(arguments).args(TINY);
        command
    }

    async fn workloads(&self) -> Vec<String> {
        let info = self.cluster.nex_json(["node", "info", &self.node.id, "--json"]).await;
        let machines = info["machines"].as_array().unwrap();
        machines
            .iter()
            .map(|machine| machine["workload"]["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Nothing of a run is left, on the node or in JetStream.
    #[track_caller]
    fn clean(&self) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            assert_eq!(self.workloads().await, [""; 0], "{caller}");
            let jetstream = jetstream::new(self.cluster.client().await);
            let streams: Vec<String> = jetstream.stream_names().try_collect().await.unwrap();
            assert!(
                !streams.iter().any(|name| name.contains("nexbench")),
                "{streams:?}, {caller}"
            );
        }
    }
}

#[tokio::test]
async fn all_on_a_node_which_is_left_as_it_was() {
    let scene = Scene::set(json!({})).await;
    let command = scene.bench(&[
        "all",
        "--json",
        "--functions",
        "4",
        "--sizes",
        "1",
        "--rate",
        "500",
        "--seconds",
        "0.1",
        "--window",
        "4",
    ]);
    let report = report(&run(command).await);
    assert_eq!(report["settings"]["target"], "node");
    assert_eq!(report["settings"]["node_id"], scene.node.id);
    assert_eq!(report["settings"]["driver"], "process");
    machines(&report);
    assert!(
        report["environment"]["nats_server_version"]
            .as_str()
            .unwrap()
            .starts_with('2')
    );
    latencies(&variants(&report, "cold")[0], 8);
    latencies(&variants(&report, "warm")[0], 100);
    assert!(figure(&variants(&report, "throughput")[0], "calls_per_second", 2) > 0.0);
    for (variant, calls) in variants(&report, "density").iter().zip([8, 32]) {
        assert_eq!(variant["calls"], calls);
        // The node is on this machine, and tells in which processes its functions run.
        assert!(!variant["notes"].to_string().contains("not measurable"), "{variant}");
        let memory = variant["memory"].as_array().unwrap();
        assert!(
            memory[1][0]["functions"].as_u64() >= Some(4),
            "each repeat adds to those before: {variant}"
        );
    }
    assert!(figure(&variants(&report, "density")[0], "kib_per_function", 2) > 100.0);
    let deploy = &variants(&report, "deploy")[0];
    assert!(figure(deploy, "accepted_p50_us", 2) < figure(deploy, "first_reply_p50_us", 2));
    figure(deploy, "upload_p50_us", 2);
    scene.clean().await;
}

#[tokio::test]
async fn a_run_that_is_interrupted_cleans_up() {
    let scene = Scene::set(json!({})).await;
    for signal in [Signal::INT, Signal::TERM] {
        let mut command = scene.bench(&["warm", "--seconds", "3600"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        timeout(PATIENCE, async {
            while !scene.workloads().await.iter().any(|name| name.starts_with("nexbench-")) {
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("it deploys a function");
        let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
        let output = timeout(PATIENCE, child.wait_with_output())
            .await
            .expect("ends")
            .unwrap();
        let text = ends(&output, 1, &["ended by SIG"]);
        assert!(output.stdout.is_empty() && !text.contains("left"), "{text}");
        scene.clean().await;
    }
}

#[tokio::test]
async fn a_run_that_fails_cleans_up() {
    let scene = Scene::set(json!({ "node_limits": { "max_workloads": 3 } })).await;
    let density = scene.bench(&["density", "--functions", "8"]);
    ends(&run(density).await, 1, &["at maximum workload limit"]);
    scene.clean().await;

    let mut large = scene.bench(&["warm", "--payload-size", "2000000"]);
    ends(&run(large).await, 2, &["2000000 bytes", "1048576"]);
    large = scene.bench(&["warm", "--node", "NOBODY"]);
    ends(&run(large).await, 3, &["NOBODY"]);
    scene.clean().await;

    let file = tempfile::Builder::new().suffix(".js").tempfile().unwrap();
    std::fs::write(file.path(), "() => { throw new Error('always') }").unwrap();
    let mut throws = scene.bench(&["warm", "--seconds", "0.1", "--rate", "100", "--json"]);
    throws.arg("--function").arg(file.path());
    ends(&run(throws).await, 1, &["20 errors", "always (exception)"]);
    scene.clean().await;
}

#[tokio::test]
async fn without_a_node_there_is_nothing_to_measure() {
    let cluster = Cluster::start();
    let mut command = cluster.nex(["bench", "warm"]);
    command.args(TINY);
    ends(&run(command).await, 3, &["no node"]);
    let jetstream = jetstream::new(cluster.client().await);
    let streams: Vec<String> = jetstream.stream_names().try_collect().await.unwrap();
    assert!(streams.is_empty(), "{streams:?}");
}
