//! The program `nex` against a real nats-server and a real node with real agents: from a file to an answer, its next
//! version, its logs, its end; and `nex node up --dev`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use futures::StreamExt;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{Cluster, Node};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster with a node and a folder for sources.
struct Scene {
    // Dropped before the cluster, which has its log.
    node: Node,
    cluster: Cluster,
    sources: tempfile::TempDir,
    client: async_nats::Client,
}

impl Scene {
    async fn set(config: Value) -> Self {
        let cluster = Cluster::start();
        let node = cluster.node("stage", config).await;
        let client = cluster.client().await;
        Self {
            cluster,
            node,
            sources: tempfile::tempdir().unwrap(),
            client,
        }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.sources.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    async fn devrun(&self, file: &Path, rest: &[&str]) -> Output {
        let arguments = ["devrun", file.to_str().unwrap()]
            .into_iter()
            .chain(rest.iter().copied());
        self.cluster.nex_output(arguments).await
    }

    async fn call(&self, subject: &'static str) -> String {
        let request = self.client.request(subject, "".into());
        let message = timeout(PATIENCE, request).await.unwrap().unwrap();
        String::from_utf8(message.payload.to_vec()).unwrap()
    }

    /// IDs of the workloads that the node says it runs.
    async fn running(&self) -> Vec<String> {
        let info = self.cluster.nex_json(["node", "info", &self.node.id, "--json"]).await;
        let machines = info["machines"].as_array().unwrap();
        machines
            .iter()
            .map(|machine| machine["id"].as_str().unwrap().to_owned())
            .collect()
    }
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

fn id(report: &Value) -> String {
    report["id"]
        .as_str()
        .unwrap_or_else(|| panic!("no ID in {report}"))
        .to_owned()
}

#[tokio::test]
async fn from_a_file_to_an_answer_and_its_next_version() {
    let scene = Scene::set(json!({})).await;
    let file = scene.file("greet.me.js", "() => 'one'");

    let accepted = scene.devrun(&file, &["--trigger_subject", "greet"]).await;
    let text = ends(&accepted, 0, &["🚀 Workload 'greetmejs' accepted.", &scene.node.id]);
    let first = text
        .split("with ID: ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .unwrap()
        .to_owned();
    assert_eq!(scene.call("greet").await, "one");
    assert_eq!(scene.running().await, [first.as_str()]);

    // The next version takes its place.
    scene.file("greet.me.js", "() => 'two'");
    let report = scene.devrun(&file, &["--trigger-subject", "greet", "--json"]).await;
    ends(&report, 0, &[]);
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["replaced"], json!([first]));
    assert_eq!(report["name"], "greetmejs");
    assert_eq!(report["node"], scene.node.id);
    assert_eq!(report["namespace"], "default");
    assert_eq!(report["location"], "nats://NEXCLIFILES/greetmejs");
    assert_eq!(scene.call("greet").await, "two");
    let second = id(&report);
    assert_eq!(scene.running().await, [second.as_str()]);

    // One that does not compile leaves it alone, and the error names the file and the line.
    scene.file("greet.me.js", "() => {\n  let = ;\n}");
    let refused = scene.devrun(&file, &["--trigger_subject", "greet"]).await;
    ends(&refused, 1, &["SyntaxError", &format!("{}:2:", file.display())]);
    assert!(refused.stdout.is_empty());
    assert_eq!(scene.call("greet").await, "two");

    // Without --stop both run.
    scene.file("greet.me.js", "() => 'three'");
    ends(
        &scene
            .devrun(&file, &["--trigger_subject", "greet", "--stop=false"])
            .await,
        0,
        &["🚀"],
    );
    assert_eq!(scene.running().await.len(), 2);
    ends(&scene.devrun(&file, &["--trigger_subject", "greet"]).await, 0, &["🚀"]);
    assert_eq!(scene.running().await.len(), 1);
}

#[tokio::test]
async fn no_call_is_lost_while_a_version_replaces_another() {
    let scene = Scene::set(json!({})).await;
    let file = scene.file("busy.js", "() => 'old'");
    ends(&scene.devrun(&file, &["--trigger_subject", "busy"]).await, 0, &[]);
    scene.file("busy.js", "() => 'new'");

    let calls = async {
        let mut answers = Vec::new();
        // New versions answer before the older one stops, so that "new" is seen first while devrun is still at work.
        while answers.iter().rev().take(20).filter(|answer| *answer == "new").count() < 20 {
            answers.push(scene.call("busy").await);
        }
        answers
    };
    let arguments = ["--trigger_subject", "busy"];
    let (answers, output) = tokio::join!(timeout(PATIENCE, calls), scene.devrun(&file, &arguments));
    ends(&output, 0, &["🚀"]);
    let answers = answers.unwrap();
    assert!(
        answers.iter().all(|answer| answer == "old" || answer == "new"),
        "{answers:?}"
    );
}

#[tokio::test]
async fn an_older_version_makes_room_where_there_is_none() {
    let scene = Scene::set(json!({ "node_limits": { "max_workloads": 1 } })).await;
    let file = scene.file("only.js", "() => 'one'");
    ends(&scene.devrun(&file, &["--trigger_subject", "only"]).await, 0, &[]);

    scene.file("only.js", "this is no function");
    ends(
        &scene.devrun(&file, &["--trigger_subject", "only"]).await,
        1,
        &["SyntaxError", "only.js"],
    );
    assert_eq!(scene.call("only").await, "one");

    scene.file("only.js", "() => 'two'");
    ends(&scene.devrun(&file, &["--trigger_subject", "only"]).await, 0, &[]);
    assert_eq!(scene.call("only").await, "two");

    let other = scene.file("other.js", "() => 'other'");
    ends(
        &scene.devrun(&other, &["--trigger_subject", "other"]).await,
        1,
        &["at maximum workload limit"],
    );
}

#[tokio::test]
async fn what_nodes_say_is_shown_to_people_and_programs() {
    let scene = Scene::set(json!({})).await;
    let (cluster, node) = (&scene.cluster, &scene.node.id);
    ends(
        &cluster.nex_output(["node", "probe"]).await,
        0,
        &["No workloads matched"],
    );

    let list = cluster.nex_json(["node", "ls", "--json"]).await;
    assert_eq!(list[0]["node_id"], *node);
    assert_eq!(list.as_array().unwrap().len(), 1);
    let text = ends(
        &cluster.nex_output(["node", "ls"]).await,
        0,
        &[node, "NATS Execution Nodes", "stage"],
    );
    assert!(
        text.contains("ID (* = Lameduck Mode)") && !text.contains("Sandboxed"),
        "{text}"
    );
    ends(
        &cluster.nex_output(["node", "ls", "--full"]).await,
        0,
        &["Nexus", "Uptime", "Sandboxed", "Arch"],
    );

    let file = scene.file("shown.js", "() => 1");
    let report = scene.devrun(&file, &["--trigger_subject", "shown", "--json"]).await;
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    let workload = id(&report);

    let info = cluster.nex_json(["node", "info", node, "--json"]).await;
    assert_eq!(info["node_id"], *node);
    assert_eq!(info["machines"][0]["workload"]["name"], "shownjs");
    assert_eq!(info["machines"][0]["workload"]["hash"], report["hash"]);
    let shown = [
        "NEX Node Information",
        node,
        "Xkey",
        "Available Agents",
        "Workloads",
        "🟢",
        &workload,
        "shownjs",
    ];
    ends(&cluster.nex_output(["node", "info", node]).await, 0, &shown);
    ends(
        &cluster.nex_output(["node", "info", node, "--full"]).await,
        0,
        &["Description", "Workload published in devmode"],
    );
    // Another namespace sees nothing of it.
    ends(
        &cluster.nex_output(["node", "info", node, "--namespace", "other"]).await,
        0,
        &["No workloads in namespace other"],
    );

    ends(
        &cluster.nex_output(["node", "probe", "--workload", "shownjs"]).await,
        0,
        &["Discovered Workloads", &workload],
    );
    let probe = cluster
        .nex_json(["node", "probe", "--workload", &workload, "--json"])
        .await;
    assert_eq!(probe[0]["running_machines"][0]["id"], workload);

    let duck = cluster.nex_json(["lameduck", node, "--json"]).await;
    assert_eq!(duck, json!({ "node_id": node, "success": true }));
    ends(&cluster.nex_output(["node", "ls"]).await, 0, &[&format!("{node}*")]);
    ends(
        &scene.devrun(&file, &["--trigger_subject", "shown"]).await,
        3,
        &["no node"],
    );
}

#[tokio::test]
async fn a_workload_has_the_limits_that_were_asked_for() {
    let scene = Scene::set(json!({ "max_limits": { "heap_bytes": 256 << 20 } })).await;
    let (cluster, node) = (&scene.cluster, &scene.node.id);
    let file = scene.file(
        "never.js",
        "() => new Promise((resolve) => setTimeout(resolve, 25_000))",
    );
    let arguments = [
        "--trigger_subject",
        "never",
        "--limit",
        "wall_time=200ms",
        "--limit",
        "heap=256MiB",
        "--json",
    ];
    let report = scene.devrun(&file, &arguments).await;
    ends(&report, 0, &[]);
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["limits"]["wall_time_ms"], 200);

    // The engine keeps to them: the default would have been 30 s, the function would have answered after 25.
    let request = async_nats::Request::new().timeout(Some(PATIENCE));
    let answer = scene.client.send_request("never", request).await.unwrap();
    let headers = answer.headers.unwrap();
    let header = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    assert_eq!(header("Nex-Error-Kind").as_deref(), Some("wall_timeout"));
    let error = header("Nats-Service-Error").unwrap();
    assert!(error.contains("200 ms"), "{error}");

    let info = cluster.nex_json(["node", "info", node, "--json"]).await;
    let limits = &info["machines"][0]["workload"]["limits"];
    assert_eq!(
        (&limits["wall_time_ms"], &limits["heap_bytes"]),
        (&json!(200), &json!(256 << 20))
    );
    assert_eq!(info["max_limits"]["heap_bytes"], json!(256 << 20));
    let brief = cluster.nex_output(["node", "info", node]).await;
    let text = ends(&brief, 0, &["heap=256MiB wall_time=200ms"]);
    assert!(!text.contains("cpu_time"), "{text}");
    let full = cluster.nex_output(["node", "info", node, "--full"]).await;
    ends(&full, 0, &["wall_time=200ms (own)", "cpu_time=1s\n", "instances=4\n"]);

    // No node may grant more than it has: nobody bids.
    let greedy = scene
        .devrun(&file, &["--trigger_subject", "never", "--limit", "heap=1GiB"])
        .await;
    ends(&greedy, 3, &["no node", "with these limits"]);
}

#[tokio::test]
async fn run_and_stop_name_their_node() {
    let scene = Scene::set(json!({})).await;
    let (cluster, node) = (&scene.cluster, &scene.node.id);
    let jetstream = async_nats::jetstream::new(scene.client.clone());
    let store = jetstream
        .create_object_store(async_nats::jetstream::object_store::Config {
            bucket: "MINE".into(),
            ..Default::default()
        })
        .await
        .unwrap();
    let source = "export default (msg, env) => env.vars.GREETING";
    store.put("greet", &mut source.as_bytes()).await.unwrap();
    let key = |name: &str| support::fixture("keys").join(name).to_str().unwrap().to_owned();
    let (issuer, other, xkey) = (key("issuer.nk"), key("other-issuer.nk"), key("publisher.xk"));
    let run = |url: &str, rest: &[&str]| {
        let line = [
            &[
                "run",
                url,
                node,
                "GREETING=good day",
                "--xkey",
                &xkey,
                "--issuer",
                &issuer,
                "--name",
                "greeter",
            ],
            rest,
        ]
        .concat();
        cluster.nex(line.iter().map(|word| &**word)).output()
    };

    let report = run(
        "nats://MINE/greet",
        &["--type", "v8", "--trigger_subject", "g", "--json"],
    )
    .await
    .unwrap();
    ends(&report, 0, &[]);
    let workload = id(&serde_json::from_slice(&report.stdout).unwrap());
    assert_eq!(scene.call("g").await, "good day");
    ends(&run("nats://MINE/nothing", &[]).await.unwrap(), 1, &["nothing", "MINE"]);
    ends(&run("nats://NOBUCKET/greet", &[]).await.unwrap(), 1, &["NOBUCKET"]);
    ends(
        &run("nats://MINE/greet", &["--type", "elf"]).await.unwrap(),
        1,
        &["⛔ Workload run request failed", "elf"],
    );
    ends(
        &run("nats://MINE/greet", &["--trigger_subject", "$SYS.x"])
            .await
            .unwrap(),
        1,
        &["deny list"],
    );

    let stop = |id: &str, issuer: &str| {
        cluster
            .nex(["stop", node, id, "--issuer", issuer, "--name", "greeter"])
            .output()
    };
    ends(&stop(&workload, &other).await.unwrap(), 1, &["the only entity allowed"]);
    ends(&stop("nothing", &issuer).await.unwrap(), 1, &["No such workload"]);
    assert_eq!(scene.call("g").await, "good day");
    ends(
        &stop(&workload, &issuer).await.unwrap(),
        0,
        &["✅ Workload 'greeter' stopped."],
    );
    assert_eq!(scene.running().await, Vec::<String>::new());

    let nobody = format!("N{}", "A".repeat(55));
    ends(&cluster.nex_output(["node", "info", &nobody]).await, 3, &[&nobody]);
}

/// A command that follows something: its process and both its streams.
struct Following {
    _child: Child,
    out: Lines<BufReader<ChildStdout>>,
    _err: Lines<BufReader<ChildStderr>>,
}

impl Following {
    /// Starts it and waits until it is subscribed, which it says at this log level.
    async fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut err = BufReader::new(child.stderr.take().unwrap()).lines();
        loop {
            let line = timeout(PATIENCE, err.next_line()).await.unwrap().unwrap();
            if line.expect("it follows").contains("following") {
                return Self {
                    _child: child,
                    out,
                    _err: err,
                };
            }
        }
    }

    async fn line(&mut self) -> String {
        timeout(PATIENCE, self.out.next_line()).await.unwrap().unwrap().unwrap()
    }
}

#[tokio::test]
async fn logs_and_events_are_followed() {
    let scene = Scene::set(json!({})).await;
    let follow = |line: &str| Following::start(scene.cluster.nex(line.split(' ')));
    let mut all = follow("logs --loglevel info --json --workload_name talkjs").await;
    let mut severe = follow("logs --loglevel info --level warn").await;
    let mut events = follow("events --loglevel info --json").await;

    let source = "(subject) => { console.log('info of', subject); console.warn('warning of', subject); }";
    let file = scene.file("talk.js", source);
    let report = scene.devrun(&file, &["--trigger_subject", "talk.*", "--json"]).await;
    let workload = id(&serde_json::from_slice(&report.stdout).unwrap());
    assert_eq!(scene.call("talk.now").await, "");

    let line: Value = serde_json::from_str(&all.line().await).unwrap();
    assert_eq!(line["text"], "info of talk.now");
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["workload_name"], "talkjs");
    assert_eq!(line["workload_id"], workload);
    assert_eq!(line["node_id"], scene.node.id);
    assert_eq!(
        severe.line().await,
        format!("WARN  talkjs {workload}: warning of talk.now")
    );

    loop {
        let event: Value = serde_json::from_str(&events.line().await).unwrap();
        if event["event_type"] == "workload_deployed" {
            assert_eq!(event["event"]["data"]["workload_name"], "talkjs", "{event}");
            assert_eq!(event["namespace"], "default");
            break;
        }
    }
}

/// A node started by hand, for what `Cluster::node` has no words for.
struct ByHand {
    process: Child,
    /// What it said when it was up.
    report: Value,
    home: PathBuf,
    log: Lines<BufReader<ChildStderr>>,
}

impl ByHand {
    fn nex(home: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nex"));
        command
            .env_remove("NATS_URL")
            .env("NEX_HOME", home)
            .current_dir(home)
            .kill_on_drop(true);
        command
    }

    async fn up(home: &Path, flags: &[&str]) -> Self {
        let mut command = Self::nex(home);
        command
            .args(["node", "up", "--json"])
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut out = BufReader::new(process.stdout.take().unwrap()).lines();
        let log = BufReader::new(process.stderr.take().unwrap()).lines();
        let report = timeout(PATIENCE, out.next_line())
            .await
            .unwrap()
            .unwrap()
            .expect("the node starts");
        Self {
            process,
            report: serde_json::from_str(&report).unwrap(),
            home: home.to_owned(),
            log,
        }
    }

    fn id(&self) -> &str {
        self.report["node"].as_str().unwrap()
    }

    fn url(&self) -> &str {
        self.report["server"].as_str().unwrap()
    }

    async fn deploy(&self, subject: &str, source: &str) -> async_nats::Client {
        std::fs::write(self.home.join("f.js"), source).unwrap();
        let mut command = Self::nex(&self.home);
        command.args(["devrun", "f.js", "--trigger_subject", subject, "-s", self.url()]);
        ends(&command.output().await.unwrap(), 0, &["🚀", self.id()]);
        async_nats::connect(self.url()).await.unwrap()
    }

    /// Sends a signal to the node alone, as a supervisor does.
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.process.id().unwrap().cast_signed()).unwrap(), signal).unwrap();
    }

    /// Waits until its log has a line with this word.
    async fn says(&mut self, word: &str) {
        while let Some(line) = timeout(PATIENCE, self.log.next_line()).await.unwrap().unwrap() {
            if line.contains(word) {
                return;
            }
        }
        panic!("the log has no `{word}`");
    }

    async fn ended(&mut self) -> Option<i32> {
        timeout(PATIENCE, self.process.wait()).await.unwrap().unwrap().code()
    }
}

#[tokio::test]
async fn a_developer_needs_no_server() {
    let home = tempfile::tempdir().unwrap();
    // Left over from another project: nothing to do with the node.
    std::fs::write(home.path().join("config.json"), "{\"compilerOptions\": {}}").unwrap();
    for mode in [&["--dev", "--tags", "a=b"][..], &["--dev", "--unsafe-in-process"]] {
        let mut node = ByHand::up(home.path(), mode).await;
        let client = node.deploy("hi", "() => 'hi'").await;
        let reply = timeout(PATIENCE, client.request("hi", "".into()))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(reply.payload, "hi");
        node.signal(Signal::TERM);
        assert_eq!(node.ended().await, Some(0));
    }
    // The keys were made on the way.
    for key in ["issuer.nk", "publisher.xk"] {
        assert!(home.path().join(key).exists(), "{key}");
    }
}

#[tokio::test]
async fn a_node_keeps_its_identity() {
    let cluster = Cluster::start();
    let home = tempfile::tempdir().unwrap();
    let url = cluster.url();
    let mut first = ByHand::up(home.path(), &["-s", &url]).await;
    // A second one beside it is another node.
    let second = ByHand::up(home.path(), &["-s", &url]).await;
    assert_ne!(second.id(), first.id());
    drop(second);
    first.signal(Signal::INT);
    assert_eq!(first.ended().await, Some(0));
    let again = ByHand::up(home.path(), &["-s", &url]).await;
    assert_eq!(again.id(), first.id());

    let state = home.path().join("node");
    let refused = ByHand::nex(home.path())
        .args(["node", "up", "-s", &url, "--state-dir"])
        .arg(&state)
        .output()
        .await
        .unwrap();
    ends(&refused, 2, &["in use", state.to_str().unwrap()]);
}

#[tokio::test]
async fn a_second_signal_does_not_wait() {
    let home = tempfile::tempdir().unwrap();
    let mut node = ByHand::up(home.path(), &["--dev"]).await;
    let source = "export default async (msg, env) => {
        await env.nats.publish('entered', '');
        await new Promise((resolve) => setTimeout(resolve, 25000));
    }";
    let client = node.deploy("slow", source).await;
    let mut entered = client.subscribe("entered").await.unwrap();
    client.publish("slow", "".into()).await.unwrap();
    timeout(PATIENCE, entered.next()).await.unwrap().unwrap();
    // The call is in flight. The first signal waits for it.
    node.signal(Signal::INT);
    node.says("stopping").await;
    assert_eq!(node.process.try_wait().unwrap(), None);
    node.signal(Signal::INT);
    assert_eq!(node.ended().await, Some(130));
}
