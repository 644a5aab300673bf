//! The whole path, live: a nats-server, a node, the echo function deployed from its file and called over NATS.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{self, Server};
use crate::request::request;
use crate::tools;
use crate::workspace::Workspace;

const FUNCTION: &str = "fixtures/js/echofunction.js";
const SUBJECT: &str = "helloworld";
const PAYLOAD: &str = "hello world";
const EXPECTED: &str = r#"{"triggered_on":"helloworld","payload":"hello world"}"#;

/// How long a server may take to start. Generous: the machine may be busy.
const START: Duration = Duration::from_secs(60);
const REPLY: Duration = Duration::from_secs(10);

/// What `cargo xtask demo` was told.
#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    once: bool,
    /// 0 lets the system choose.
    port: u16,
}

impl Options {
    /// Reads the arguments after `demo`.
    ///
    /// # Errors
    /// When one is unknown or lacks its value.
    pub(crate) fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self { once: false, port: 0 };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--once" => options.once = true,
                "--port" => {
                    let value = args.next().context("--port wants a number")?;
                    options.port = value
                        .parse()
                        .with_context(|| format!("--port wants a number, got `{value}`"))?;
                }
                other => bail!("`demo` has no argument `{other}`; see `cargo xtask help`"),
            }
        }
        Ok(options)
    }
}

/// Runs the demo; without `--once`, until a signal ends it.
///
/// # Errors
/// When a part cannot be set up, built or started, and when the reply is not the documented one.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let nats_server = tools::nats_server(workspace)?;
    workspace.build_binaries()?;
    let mut demo = Demo::start(workspace, &nats_server, options.port)?;
    demo.nex.deploy().map_err(|error| demo.node.explain(&error))?;
    demo.call().map_err(|error| demo.node.explain(&error))?;
    if options.once {
        return Ok(());
    }
    println!("{}", demo.nex.what_next());
    while !process::interrupted_within(Duration::from_millis(200)) {
        demo.nats.check_running()?;
        demo.node.check_running()?;
    }
    eprintln!("\nxtask: ending the node and the nats-server");
    Ok(())
}

/// What runs. Fields are dropped in this order: first the node, then the server it talks to, at last their files.
struct Demo {
    node: Server,
    nats: Server,
    _files: Scratch,
    address: String,
    nex: Nex,
}

impl Demo {
    /// Starts the nats-server and the node, and waits until the node answers.
    fn start(workspace: &Workspace, nats_server: &Path, port: u16) -> Result<Self> {
        let started = Instant::now();
        let files = Scratch::new()?;
        let (nats, address) = start_nats_server(nats_server, files.path(), port)?;
        let nex = Nex {
            binary: workspace.binary("nex"),
            root: workspace.root().to_path_buf(),
            url: nats_url(&address),
        };
        let mut node = start_node(workspace, files.path(), &address)?;
        node.wait_until(START, || nex.has_node())?;
        eprintln!(
            "xtask: nats-server and node are up after {:.1} s",
            started.elapsed().as_secs_f64()
        );
        Ok(Self {
            node,
            nats,
            _files: files,
            address,
            nex,
        })
    }

    /// Calls the function and shows what it replies, which must be what the documentation says.
    fn call(&self) -> Result<()> {
        let asked = Instant::now();
        let reply = request(&self.address, SUBJECT, PAYLOAD.as_bytes(), REPLY)?;
        let milliseconds = asked.elapsed().as_secs_f64() * 1e3;
        let reply = String::from_utf8_lossy(&reply);
        println!("\n  request  {SUBJECT}  {PAYLOAD}\n  reply    {reply}\n  in       {milliseconds:.1} ms\n");
        if reply != EXPECTED {
            bail!("the reply should have been {EXPECTED}");
        }
        Ok(())
    }
}

fn nats_url(address: &str) -> String {
    format!("nats://{address}")
}

/// Starts a nats-server with JetStream and returns it with the address it listens on.
fn start_nats_server(binary: &Path, files: &Path, port: u16) -> Result<(Server, String)> {
    let port = if port == 0 { "-1".to_owned() } else { port.to_string() };
    let mut command = Command::new(binary);
    command.args(["--addr", "127.0.0.1", "--port", &port, "--jetstream"]);
    command
        .arg("--store_dir")
        .arg(files.join("jetstream"))
        .arg("--ports_file_dir")
        .arg(files);
    let mut server = Server::start("nats-server", command, &files.join("nats-server.log"))?;
    let address = server.wait_until(START, || ports_file(files))?;
    Ok((server, address))
}

/// The address in the file that nats-server writes once it listens: `{"nats":["nats://127.0.0.1:4222"], ...}`.
fn ports_file(directory: &Path) -> Result<Option<String>> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "ports") {
            let text = fs::read_to_string(path)?;
            return Ok(text
                .split('"')
                .find_map(|word| word.strip_prefix("nats://"))
                .map(str::to_owned));
        }
    }
    Ok(None)
}

fn start_node(workspace: &Workspace, files: &Path, address: &str) -> Result<Server> {
    let mut command = hermetic(&workspace.binary("nex"));
    command
        .args(["node", "up", "-s", &nats_url(address)])
        .current_dir(files);
    Server::start("the node", command, &files.join("node.log"))
}

/// `nex` without the settings for another NATS that may be in the environment. Where keys are kept stays as it is.
fn hermetic(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("NATS_") || (text.starts_with("NEX_") && text != "NEX_HOME") {
            command.env_remove(&name);
        }
    }
    command
}

/// The command-line client, pointed at the demo's server.
struct Nex {
    binary: PathBuf,
    root: PathBuf,
    url: String,
}

impl Nex {
    fn command(&self) -> Command {
        let mut command = hermetic(&self.binary);
        command
            .current_dir(&self.root)
            .env("NATS_URL", &self.url)
            .stdin(Stdio::null());
        command
    }

    /// Whether a node answers; `nex node ls --json` prints a list of them.
    fn has_node(&self) -> Result<Option<()>> {
        let output = self
            .command()
            .args(["node", "ls", "--json", "--timeout", "300ms"])
            .output()
            .context("cannot run `nex node ls`")?;
        let list = String::from_utf8_lossy(&output.stdout);
        Ok((output.status.success() && list.contains('{')).then_some(()))
    }

    fn deploy(&self) -> Result<()> {
        process::step(
            &format!("deploying {FUNCTION}"),
            self.command().args(["devrun", FUNCTION, "--trigger_subject", SUBJECT]),
        )
    }

    fn what_next(&self) -> String {
        let (nex, url) = (self.binary.display(), &self.url);
        format!(
            "Now, in another terminal:

  export NATS_URL={url}
  alias nex={nex}

  nex node ls                     # shows the node
  nex logs                        # shows what functions print

Change {FUNCTION}, deploy it again, call it again:

  nex devrun {FUNCTION} --trigger_subject {SUBJECT}
  cargo xtask request {SUBJECT} 'hello again'      # any NATS client will do

Ctrl-C here ends the node and the nats-server."
        )
    }
}

/// A directory that is removed with all in it when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("nex-demo-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::Options;

    fn parse(args: &[&str]) -> Option<Options> {
        Options::parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>()).ok()
    }

    #[test]
    fn reads_its_arguments() {
        assert_eq!(parse(&[]), Some(Options { once: false, port: 0 }));
        assert_eq!(
            parse(&["--port", "4222", "--once"]),
            Some(Options { once: true, port: 4222 })
        );
        assert_eq!(parse(&["--port"]), None);
        assert_eq!(parse(&["--port", "many"]), None);
        assert_eq!(parse(&["--twice"]), None);
    }
}
