//! What every driver has to do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nex_host_services::nats_server::Options;
use nex_node::agents::{AgentEvent, AgentInfo, AgentPool, AgentState};
use nex_node::{Node, NodeConfig};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::driver::{Driver, Muscle};
use crate::harness::{PATIENCE, World, connect, header};
use crate::memory;

/// A node with functions over one driver.
struct Setup {
    world: World,
    node: Node,
    muscle: Muscle,
}

impl Setup {
    async fn over(driver: Driver) -> Self {
        Self::in_world(World::new().await, driver).await
    }

    async fn in_world(world: World, driver: Driver) -> Self {
        let muscle = driver.start().await;
        let client = connect(&world.url).await;
        let node = Node::start(NodeConfig::default(), client, muscle.engine.clone())
            .await
            .unwrap();
        assert_eq!(node.tags()["nex.driver"], driver.name());
        Self { world, node, muscle }
    }

    async fn deploy(&self, name: &str, source: &str) {
        self.world.deploy(&self.node, name, source, &[name]).await;
    }

    async fn text(&self, subject: &str, payload: &str) -> String {
        let reply = self.world.call(subject, payload).await;
        if let Some(error) = header(&reply, "Nats-Service-Error") {
            return format!("error: {error}");
        }
        String::from_utf8_lossy(&reply.payload).into_owned()
    }

    /// Calls until the function answers, and tells how long that took.
    async fn answers_again(&self, subject: &str) -> Duration {
        let start = Instant::now();
        while self.text(subject, "again").await != "again" {
            assert!(start.elapsed() < PATIENCE, "{subject} does not come back");
        }
        start.elapsed()
    }

    fn pool(&self) -> &Arc<AgentPool> {
        self.muscle.pool.as_ref().expect("a driver with machines")
    }

    /// The machine that serves functions; there is one, because there is one namespace.
    fn serving(&self) -> AgentInfo {
        let mut agents = self.pool().agents();
        agents.retain(|agent| agent.state == AgentState::Serving);
        assert_eq!(agents.len(), 1, "{agents:?}");
        agents.remove(0)
    }

    async fn end(self) {
        self.node.shutdown().await;
        if let Some(pool) = self.muscle.pool {
            pool.shutdown().await;
        }
    }
}

const ECHO: &str = "(subject, payload) => payload";

pub(crate) async fn functions_answer(driver: Driver) {
    let setup = Setup::over(driver).await;
    setup.deploy("echo", ECHO).await;
    assert_eq!(setup.text("echo", "hello").await, "hello");
    let large = "x".repeat(900_000);
    assert_eq!(setup.text("echo", &large).await, large);
    setup
        .deploy(
            "module",
            "export default async (msg) => ({ said: msg.text(), on: msg.subject })",
        )
        .await;
    let reply = setup.text("module", "hello").await;
    assert_eq!(reply, r#"{"said":"hello","on":"module"}"#);
    setup.end().await;
}

/// A server that answers every request with its path.
async fn http_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).await.unwrap();
                let text = String::from_utf8_lossy(&request[..read]).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default();
                let length = path.len();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{path}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
        }
    });
    format!("http://{address}")
}

pub(crate) async fn host_services_work_from_inside(driver: Driver) {
    let setup = Setup::over(driver).await;
    let url = http_server().await;
    let counter = "export default async (msg, env) => {
        const kv = env.kv();
        const text = (bytes) => new TextDecoder().decode(bytes);
        const seen = (await kv.keys()).includes('count') ? Number(text(await kv.get('count'))) : 0;
        await kv.set('count', String(seen + 1));
        const page = await env.http.get(msg.text() + '/page');
        return { seen, status: page.status, page: page.response };
    }";
    setup.deploy("counter", counter).await;
    for seen in 0..3 {
        let reply = setup.text("counter", &url).await;
        assert_eq!(reply, format!(r#"{{"seen":{seen},"status":200,"page":"/page"}}"#));
    }
    setup.end().await;
}

pub(crate) async fn namespaces_are_kept_apart(driver: Driver) {
    let setup = Setup::over(driver).await;
    setup
        .deploy(
            "leak",
            "(subject, payload) => { globalThis.secret ??= 0; return String(globalThis.secret++); }",
        )
        .await;
    assert_eq!(setup.text("leak", "").await, "0");
    let mut other = setup
        .world
        .request(&setup.node, "leak", "() => typeof secret", &["other"])
        .await;
    other.workload_name = Some("leak".to_owned());
    nex_node::control::ControlClient::new(setup.world.client.clone(), "elsewhere", PATIENCE)
        .deploy(setup.node.id(), &other)
        .await
        .unwrap();
    assert_eq!(setup.text("other", "").await, "undefined");
    if setup.muscle.pool.is_some() {
        let agents = setup.pool().agents();
        let mut namespaces: Vec<_> = agents.iter().filter_map(|agent| agent.namespace.as_deref()).collect();
        namespaces.sort_unstable();
        assert_eq!(namespaces, ["default", "elsewhere"], "each has a machine of its own");
    }
    setup.end().await;
}

pub(crate) async fn errors_reach_the_caller(driver: Driver) {
    let setup = Setup::over(driver).await;
    setup
        .deploy("thrower", "() => { throw new TypeError('no such thing'); }")
        .await;
    let reply = setup.world.call("thrower", "").await;
    assert_eq!(header(&reply, "Nex-Error-Kind"), Some("exception"));
    assert!(header(&reply, "Nats-Service-Error").unwrap().contains("no such thing"));
    setup.deploy("endless", "() => { for (;;); }").await;
    let reply = setup.world.call("endless", "").await;
    assert_eq!(header(&reply, "Nex-Error-Kind"), Some("cpu_timeout"));
    setup.end().await;
}

fn pid_of(agent: &AgentInfo) -> Pid {
    Pid::from_raw(i32::try_from(agent.pid).unwrap()).unwrap()
}

pub(crate) async fn a_killed_machine_is_replaced(driver: Driver) {
    let setup = Setup::over(driver).await;
    setup.deploy("echo", ECHO).await;
    setup
        .deploy(
            "slow",
            "export default () => new Promise(() => setTimeout(() => {}, 60_000))",
        )
        .await;
    let first = setup.serving();
    // Somebody waits inside when it happens.
    let call = setup.world.call("slow", "");
    let kill = async {
        while setup.serving().in_flight == 0 {
            tokio::task::yield_now().await;
        }
        kill_process(pid_of(&first), Signal::KILL).unwrap();
    };
    let (reply, ()) = tokio::join!(call, kill);
    assert_eq!(header(&reply, "Nex-Error-Kind"), Some("not_ready"));
    setup.answers_again("echo").await;
    assert_ne!(setup.serving().id, first.id);
    setup.end().await;
}

pub(crate) async fn a_machine_that_stands_still_is_replaced(driver: Driver) {
    let setup = Setup::over(driver).await;
    setup.deploy("echo", ECHO).await;
    let first = setup.serving();
    kill_process(pid_of(&first), Signal::STOP).unwrap();
    // The call is answered, be it with an error, and by another machine in the end.
    setup.answers_again("echo").await;
    assert_ne!(setup.serving().id, first.id);
    setup.end().await;
}

pub(crate) async fn machines_are_told_of(driver: Driver) {
    let setup = Setup::over(driver).await;
    let mut events = setup.pool().subscribe();
    setup.deploy("echo", ECHO).await;
    assert_eq!(setup.text("echo", "hello").await, "hello");
    // The next warm one.
    loop {
        let event = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
        if let AgentEvent::Started {
            driver: kind, start, ..
        } = event
        {
            assert_eq!(kind.as_str(), driver.name());
            assert!(start.elapsed > Duration::ZERO);
            break;
        }
    }
    let info = setup.world.control().info(setup.node.id()).await.unwrap();
    let serving = info.agents.iter().find(|agent| agent.state == "serving").unwrap();
    assert_eq!(serving.driver, driver.name());
    assert!(serving.host_bytes > 1 << 20 && serving.start_us > 0, "{serving:?}");
    setup.end().await;
}

/// What a function does with the node's credentials, which it is not to see.
const USER_OF_SERVICES: &str = "export default async (msg, env) => {
    await env.kv().set('key', 'value');
    return new TextDecoder().decode(await env.kv().get('key'));
}";

pub(crate) async fn credentials_stay_with_the_node(driver: Driver) {
    let password = uuid::Uuid::new_v4().simple().to_string();
    let options = Options {
        config: format!("authorization {{ user: node, password: {password} }}"),
        ..Options::default()
    };
    let world = World::with_server(options, &format!("node:{password}@")).await;
    let setup = Setup::in_world(world, driver).await;
    setup.deploy("services", USER_OF_SERVICES).await;
    assert_eq!(setup.text("services", "").await, "value");

    assert!(
        memory::holds(std::process::id(), &password).unwrap(),
        "the node has them"
    );
    let looked_into = memory::holds(setup.serving().pid, "await env.kv().set");
    assert!(
        looked_into.unwrap_or(!rustix::process::geteuid().is_root()),
        "the machine has the function"
    );
    for agent in setup.pool().agents() {
        match memory::holds(agent.pid, &password) {
            Ok(holds) => assert!(!holds, "the node's password is in the machine {}", agent.id),
            // An ordinary user may not look into a process that confines itself.
            Err(error) => assert!(!rustix::process::geteuid().is_root(), "{error}"),
        }
    }
    setup.end().await;
}

pub(crate) async fn shutdown_leaves_no_process(driver: Driver) {
    let setup = Setup::over(driver).await;
    setup.deploy("echo", ECHO).await;
    let pids: Vec<Pid> = setup.pool().agents().iter().map(pid_of).collect();
    assert!(pids.iter().all(|&pid| test_kill_process(pid).is_ok()));
    setup.end().await;
    assert!(pids.iter().all(|&pid| test_kill_process(pid).is_err()));
}
