#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use clap::CommandFactory;
use clap::error::ErrorKind;

use super::*;

fn refused(arguments: &[&str]) -> String {
    let error = parse(["nex"].iter().chain(arguments))
        .map(|cli| panic!("{arguments:?} was taken for {cli:?}"))
        .unwrap_err();
    assert_eq!(error.exit_code(), 2, "{arguments:?}");
    error.to_string()
}

fn accepted(line: &str) -> Cli {
    parse(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"))
}

#[test]
fn the_tree_of_commands_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn help_names_every_command_and_gives_examples() {
    let error = parse(["nex", "--help"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DisplayHelp);
    let help = error.to_string();
    for word in [
        "node",
        "run",
        "devrun",
        "yeet",
        "stop",
        "lameduck",
        "logs",
        "events",
        "invoke",
        "--server",
        "NATS_URL",
        "NEX_NAMESPACE",
        "Examples:",
        "Exit status:",
    ] {
        assert!(help.contains(word), "{word} is missing in\n{help}");
    }
}

#[test]
fn help_lists_every_limit() {
    for command in ["run", "devrun", "invoke"] {
        let help = parse(["nex", command, "--help"]).unwrap_err().to_string();
        for limit in crate::limits::LimitKey::ALL {
            assert!(help.contains(limit.name()), "{} is missing in\n{help}", limit.name());
        }
    }
}

#[test]
fn global_flags_stand_before_or_after_the_command() {
    for line in [
        "nex -s nats://a:1 --timeout 750ms --namespace prod node ls",
        "nex node ls --server nats://a:1 --timeout 750ms --namespace prod",
        "nex node --namespace prod ls -s nats://a:1 --timeout=750ms",
    ] {
        let global = accepted(line).global;
        assert!(global.names_a_server(), "{line}");
        assert_eq!(global.namespace, "prod", "{line}");
        assert_eq!(global.timeout, Some(std::time::Duration::from_millis(750)), "{line}");
    }
}

#[test]
fn flags_are_known_in_both_spellings() {
    for flag in ["--trigger_subject", "--trigger-subject"] {
        let cli = accepted(&format!("nex yeet echo.js A=1 {flag} a {flag} b.> B=x=y --stop=false"));
        let Command::Devrun(args) = cli.command else {
            panic!("not devrun");
        };
        let shown = format!("{args:?}");
        for part in [r#"["a", "b.>"]"#, r#"("A", "1"), ("B", "x=y")"#, "stop: false"] {
            assert!(shown.contains(part), "{part} is missing in {shown}");
        }
    }
    accepted("nex logs --workload_name w --workload_id i --node N");
    accepted("nex logs --workload-name w --workload-id i --level WARN");
    accepted("nex node ls --conn-name me");
    accepted("nex node ls --conn_name me");
    accepted("nex devrun a.js --stop --argv --flag");
    accepted("nex run nats://B/k N1 --xkey x --issuer i --name n --type v8 --essential K=V");
    let cli = accepted("nex devrun a.js --limit cpu_time=500ms --limit heap=64MiB --limit cpu_time=1s");
    let Command::Devrun(args) = cli.command else {
        panic!("not devrun");
    };
    let shown = format!("{args:?}");
    assert!(
        shown.contains("Assignment(CpuTime, 1000)") && shown.contains("Assignment(Heap, 67108864)"),
        "{shown}"
    );
    accepted("nex stop N1 id --issuer i --name n");
}

#[test]
fn mistakes_are_answered_with_what_was_expected() {
    let cases: [(&[&str], &str); 14] = [
        (&["nodes"], "node"),
        (&["node", "ls", "--timeout", "2"], "750ms"),
        (&["node", "info", "a.b"], "letters, digits"),
        (&["node", "ls", "--namespace", "a.>"], "letters, digits"),
        (&["node", "ls", "--loglevel", "loud"], "debug"),
        (&["devrun", "a.js", "X"], "NAME=VALUE"),
        (&["devrun", "a.js", "--name", "a.b"], "letters, digits"),
        (&["devrun", "a.js", "--bucketmaxbytes", "0"], "1.."),
        (
            &["run", "http://x/y", "N", "--xkey", "x", "--issuer", "i", "--name", "n"],
            "nats://BUCKET/key",
        ),
        (&["stop", "N", "id"], "--issuer"),
        (&["devrun", "a.js", "--limit", "heap=64"], "64MiB"),
        (
            &["invoke", "a.js", "--limit", "speed=1"],
            "expected one of cpu_time, wall_time",
        ),
        (&["invoke", "a.js", "--limit", "instances=0"], "possible are 1 to 1000"),
        (&["invoke", "a.js", "--header", "x"], "NAME:VALUE"),
    ];
    for (arguments, expected) in cases {
        let error = refused(arguments);
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
    refused(&["invoke", "a.js", "--payload", "x", "--payload-file", "y"]);
}
