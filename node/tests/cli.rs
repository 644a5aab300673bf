//! The program `nex` as its users meet it where no server is: help, mistakes, unreachable servers, and `nex invoke`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder to run `nex` in, with nothing of the tester's own settings.
struct Workplace(TempDir);

impl Workplace {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nex"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("NATS_") || text.starts_with("NEX_") || text.starts_with("XDG_") {
                command.env_remove(&name);
            }
        }
        command
            .args(line.split(' '))
            .env("HOME", self.0.path())
            .current_dir(self.0.path());
        command
    }

    fn nex(&self, line: &str) -> Run {
        self.run(line, b"")
    }

    fn run(&self, line: &str, input: &[u8]) -> Run {
        let mut child = self
            .command(line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that does not read it closes the pipe.
        _ = child.stdin.take().unwrap().write_all(input);
        Run {
            line: line.to_owned(),
            output: child.wait_with_output().unwrap(),
        }
    }
}

struct Run {
    line: String,
    output: Output,
}

impl Run {
    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    #[track_caller]
    fn exits(self, status: i32) -> Self {
        let line = &self.line;
        assert_eq!(
            self.output.status.code(),
            Some(status),
            "nex {line}: {}{}",
            self.stdout(),
            self.stderr()
        );
        self
    }

    /// Standard error holds all of these.
    #[track_caller]
    fn says(self, words: &[&str]) -> Self {
        let stderr = self.stderr();
        for word in words {
            assert!(
                stderr.contains(word),
                "nex {}: `{word}` is missing in: {stderr}",
                self.line
            );
        }
        self
    }

    /// The failure is one line on standard error, and nothing on standard output.
    #[track_caller]
    fn in_one_line(self) -> Self {
        assert_eq!(self.stdout(), "", "nex {}", self.line);
        assert_eq!(self.stderr().lines().count(), 1, "nex {}: {}", self.line, self.stderr());
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.output.stdout)
            .unwrap_or_else(|error| panic!("nex {}: {error}: {}", self.line, self.stdout()))
    }
}

const ECHO: &str = "(subject, payload) => ({ triggered_on: subject, payload: String.fromCharCode(...payload) })";

#[test]
fn every_command_has_help() {
    let workplace = Workplace::new();
    for command in [
        "",
        "node ",
        "node up ",
        "node ls ",
        "node info ",
        "node probe ",
        "run ",
        "devrun ",
        "yeet ",
        "stop ",
        "lameduck ",
        "logs ",
        "events ",
        "invoke ",
    ] {
        let run = workplace.nex(&format!("{command}--help")).exits(0);
        assert!(run.stdout().contains("Usage: nex"), "{command}: {}", run.stdout());
    }
    assert!(workplace.nex("--version").exits(0).stdout().starts_with("nex "));
}

#[test]
fn help_shows_no_secrets_of_the_environment() {
    let output = Workplace::new()
        .command("--help")
        .env("NATS_PASSWORD", "hunter2")
        .env("NATS_USER", "somebody")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("hunter2") && !text.contains("somebody"), "{text}");
}

#[test]
fn mistakes_end_with_status_2() {
    let workplace = Workplace::new();
    workplace.file("x.js", ECHO);
    workplace.file("x.py", "");
    workplace.nex("frobnicate").exits(2).says(&["frobnicate"]);
    workplace.nex("node ls --timeout 2").exits(2).says(&["750ms"]);
    workplace
        .nex("node ls --context nope")
        .exits(2)
        .says(&["nope", "context"])
        .in_one_line();
    workplace
        .nex("node ls --server nats://a:b:c")
        .exits(2)
        .says(&["server URL"])
        .in_one_line();
    workplace
        .nex("node ls --creds none.creds")
        .exits(2)
        .says(&["none.creds"])
        .in_one_line();
    workplace
        .nex("node ls --tlscert c.pem")
        .exits(2)
        .says(&["--tlskey"])
        .in_one_line();
    workplace
        .nex("devrun none.js")
        .exits(2)
        .says(&["none.js"])
        .in_one_line();
    workplace
        .nex("devrun x.py")
        .exits(2)
        .says(&["x.py", ".js is v8", "--type"])
        .in_one_line();
    workplace
        .nex("stop N1 id --issuer none.nk")
        .exits(2)
        .says(&["none.nk"])
        .in_one_line();
    workplace
        .nex("stop N1 id --issuer x.js")
        .exits(2)
        .says(&["x.js", "seed"])
        .in_one_line();
    workplace
        .nex("node up --config none.json")
        .exits(2)
        .says(&["none.json"]);
    workplace
        .nex("node up --dev --server nats://a")
        .exits(2)
        .says(&["--dev"]);
    workplace
        .nex("invoke none.js")
        .exits(2)
        .says(&["none.js"])
        .in_one_line();
    workplace.nex("invoke x.py").exits(2).says(&[".js is v8"]).in_one_line();
    workplace
        .nex("invoke x.py --type elf")
        .exits(2)
        .says(&["elf", "v8"])
        .in_one_line();
    workplace
        .nex("invoke x.js --payload-file none")
        .exits(2)
        .says(&["none"])
        .in_one_line();
}

#[test]
fn an_unreachable_server_is_named_by_every_command() {
    let workplace = Workplace::new();
    workplace.file("echo.js", ECHO);
    // Nobody listens on a port that was just given back.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    drop(listener);
    for command in [
        "node ls",
        "node ls --json",
        "node info N1",
        "node probe",
        "lameduck N1",
        "devrun echo.js",
        "logs",
        "events",
    ] {
        workplace
            .nex(&format!("{command} --server {url}"))
            .exits(3)
            .says(&[&url, "refused"])
            .in_one_line();
    }
    // The keys that devrun has made serve the others.
    let keys = "--issuer .nex/issuer.nk";
    workplace
        .nex(&format!("stop N1 id {keys} -s {url}"))
        .exits(3)
        .says(&[&url])
        .in_one_line();
    workplace
        .nex(&format!(
            "run nats://B/k N1 {keys} --xkey .nex/publisher.xk --name n -s {url}"
        ))
        .exits(3)
        .says(&[&url])
        .in_one_line();
    workplace.nex(&format!("node up -s {url}")).exits(3).says(&[&url]);
}

#[test]
fn a_silent_server_is_given_up_on() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    Workplace::new()
        .nex(&format!("node ls -s {url} --timeout 100ms"))
        .exits(3)
        .says(&[&url, "100ms"])
        .in_one_line();
}

#[test]
fn a_context_says_where_the_server_is() {
    let workplace = Workplace::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let context = json!({ "description": "test", "url": url }).to_string();
    workplace.file(".config/nats/context/work.json", &context);
    workplace
        .nex("node ls --context work --timeout 50ms")
        .exits(3)
        .says(&[&url]);
    let output = workplace
        .command("node ls --timeout 50ms")
        .env("NATS_CONTEXT", "work")
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains(&url));
}

#[test]
fn invoke_replies_and_nothing_else() {
    let workplace = Workplace::new();
    workplace.file("echo.js", ECHO);
    let run = workplace
        .nex("invoke echo.js --subject helloworld --payload hello")
        .exits(0)
        .says(&[]);
    assert_eq!(run.stdout(), r#"{"triggered_on":"helloworld","payload":"hello"}"#);
    assert_eq!(run.stderr(), "");
}

#[test]
fn invoke_keeps_every_byte() {
    let workplace = Workplace::new();
    workplace.file("id.js", "(subject, payload) => payload");
    let bytes: Vec<u8> = (0..=255).cycle().take(1_000_000).collect();
    let run = workplace.run("invoke id.js --payload-file -", &bytes).exits(0);
    assert!(
        run.output.stdout == bytes,
        "{} bytes came back",
        run.output.stdout.len()
    );
    std::fs::write(workplace.0.path().join("bytes"), &bytes).unwrap();
    let run = workplace.nex("invoke id.js --payload-file bytes").exits(0);
    assert!(run.output.stdout == bytes);
    assert!(workplace.nex("invoke id.js").exits(0).output.stdout.is_empty());
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let workplace = Workplace::new();
    workplace.file("long.js", "() => 'x'.repeat(1000000)");
    let mut child = workplace
        .command("invoke long.js")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn invoke_shows_where_it_was_thrown() {
    let workplace = Workplace::new();
    workplace.file(
        "src/throw.js",
        "function inner() {\n  throw new TypeError('bad thing');\n}\n() => inner()",
    );
    let run = workplace.nex("invoke src/throw.js").exits(1).says(&[
        "TypeError: bad thing",
        "src/throw.js:2:9",
        "src/throw.js:4",
    ]);
    assert_eq!(run.stdout(), "");
    assert_eq!(
        run.stderr().matches("bad thing").count(),
        1,
        "once is enough: {}",
        run.stderr()
    );

    let report = workplace.nex("invoke src/throw.js --json").exits(1).json();
    assert_eq!(report["replies"], json!([]));
    assert_eq!(report["error"]["kind"], "exception");
    assert_eq!(report["error"]["name"], "TypeError");
    assert_eq!(report["error"]["message"], "TypeError: bad thing");
    assert!(
        report["error"]["stack"].as_str().unwrap().contains("src/throw.js:2:9"),
        "{report}"
    );
}

#[test]
fn invoke_shows_errors_of_no_call_beside_that_of_the_call() {
    let workplace = Workplace::new();
    let source = "() => { setTimeout(() => { throw new Error('behind') }, 0);\n\
                  return new Promise((_, fail) => setTimeout(() => fail(new Error('before')), 20)) }";
    workplace.file("two.js", source);
    let run = workplace.nex("invoke two.js").exits(1);
    for text in ["Uncaught Error: behind", "Error: before"] {
        assert_eq!(run.stderr().matches(text).count(), 1, "{}", run.stderr());
    }
}

#[test]
fn invoke_shows_where_it_does_not_compile() {
    let workplace = Workplace::new();
    workplace.file("broken.js", "(s, p) => {\n  let = ;\n}");
    let run = workplace
        .nex("invoke broken.js")
        .exits(1)
        .says(&["SyntaxError", "broken.js:2:"]);
    assert_eq!(run.stdout(), "");
    let report = workplace.nex("invoke broken.js --json").exits(1).json();
    assert_eq!(report["error"]["kind"], "load");

    workplace.file("none.js", "42");
    workplace.nex("invoke none.js").exits(1).says(&["function"]);
}

#[test]
fn invoke_ends_what_does_not_end() {
    let workplace = Workplace::new();
    workplace.file("spin.js", "() => { for (;;) {} }");
    workplace
        .nex("invoke spin.js --timeout 100ms")
        .exits(1)
        .says(&["wall_timeout", "100 ms"]);
    workplace
        .nex("invoke spin.js --timeout 20s --limit wall_time=150ms")
        .exits(1)
        .says(&["wall_timeout", "150 ms"]);
    workplace
        .nex("invoke spin.js --limit wall_time=150")
        .exits(2)
        .says(&["--limit", "wall_time: `150` is not a duration"]);
}

#[test]
fn invoke_gives_the_function_headers_variables_and_services() {
    let workplace = Workplace::new();
    workplace.file(
        "all.mjs",
        "export default async (msg, env, ctx) => {
           console.warn('working on', msg.subject);
           await env.kv().set('k', msg.data);
           const kept = new TextDecoder().decode(await env.kv().get('k'));
           return { kept, headers: msg.headers.get('X-A'), vars: env.vars.NAME };
         }",
    );
    let line = "invoke all.mjs --payload v --header X-A:b --env NAME=val";
    let run = workplace.nex(line).exits(0).says(&["[WARN] working on invoke"]);
    let reply: Value = run.json();
    assert_eq!(reply["kept"], "v");
    assert_eq!(reply["vars"], "val");

    let report = workplace.nex(&format!("{line} --json")).exits(0).json();
    assert_eq!(report["error"], Value::Null);
    assert_eq!(
        report["logs"],
        json!([{ "level": "warn", "text": "working on invoke" }])
    );
    assert_eq!(report["replies"].as_array().unwrap().len(), 1);
    let text = report["replies"][0]["text"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), reply);
}
