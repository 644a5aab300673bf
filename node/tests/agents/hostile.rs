//! Agents that speak the link protocol and mean harm.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use bytes::Bytes;
use nex_agent::link::{AgentToNode, CallId, FunctionId, Health, Hello, LinkReader, NodeToAgent, Outbox};
use nex_runtime::host_services::{HostErrorCode, HostRequest, Operation};
use nex_runtime::invocation::Reply;
use nex_runtime::logs::{LogLevel, LogLine};
use rustix::process::getppid;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// Host calls sent at once by the role `pile`, how many more those are than a node lets wait at once, and log lines
/// sent by `log-flood`.
pub const PILE: usize = 1_500;
pub const SURPLUS: usize = PILE - 1_024;
pub const FLOOD: usize = 5_000;

/// Plays a role until the node kills the process.
pub fn run(role: &str) -> ! {
    let node = getppid();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(play(role));
    // It ends for nobody, except that a test run which was itself killed leaves nothing behind.
    while getppid() == node {
        std::thread::sleep(Duration::from_millis(200));
    }
    std::process::exit(1);
}

async fn play(role: &str) {
    let link = StdUnixStream::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
    link.set_nonblocking(true).unwrap();
    let (read, mut write) = UnixStream::from_std(link).unwrap().into_split();
    if role == "garbage" {
        write.write_all(&[0xFF; 100]).await.unwrap();
        return;
    }
    let mut reader = LinkReader::<NodeToAgent>::new(read);
    let (outbox, task) = Outbox::new(write);
    tokio::spawn(task.run());
    let send = |message| outbox.send(message).unwrap();
    let hello = || {
        AgentToNode::Hello(Hello {
            agent_version: "evil".into(),
            pid: 1,
            workload_types: if role == "no-v8" { Vec::new() } else { vec!["v8".into()] },
            capabilities: vec!["unheard-of".into()],
        })
    };
    match role {
        "mute" => return,
        "early" => send(AgentToNode::HostCancel { call: CallId(1) }),
        _ => send(hello()),
    }
    let mut refused = 0;
    let mut asked = None;
    while let Ok(Some(message)) = reader.next().await {
        match message {
            NodeToAgent::Ping { nonce } => send(AgentToNode::Pong {
                nonce,
                health: Health::default(),
            }),
            NodeToAgent::Deploy { function, .. } => {
                send(AgentToNode::DeployResult {
                    function,
                    result: Ok(()),
                });
                match role {
                    "deployed-twice" => send(AgentToNode::DeployResult {
                        function,
                        result: Ok(()),
                    }),
                    "hello-twice" => send(hello()),
                    "forged-host-call" => send(host_call(CallId(1), FunctionId(function.0 + 1))),
                    "same-host-call" => {
                        send(host_call(CallId(1), function));
                        send(host_call(CallId(1), function));
                    }
                    "forged-log" => send(log(FunctionId(function.0 + 1))),
                    "forged-reply" => send(reply(CallId(1), "")),
                    _ => {}
                }
            }
            NodeToAgent::Trigger { call, function, .. } => match role {
                "big-reply" => send(reply(call, vec![0; 2 << 20])),
                "answers-twice" => {
                    send(reply(call, "first"));
                    send(reply(call, "second"));
                }
                "log-flood" => {
                    let outbox = outbox.clone();
                    tokio::spawn(async move {
                        for _ in 0..FLOOD {
                            outbox.send_when_room(log(function), 1 << 20).await.unwrap();
                        }
                        outbox.send(reply(call, "")).unwrap();
                    });
                }
                "pile" => {
                    asked = Some(call);
                    for i in 1..=PILE {
                        send(host_call(CallId(i as u64), function));
                    }
                }
                _ => {}
            },
            NodeToAgent::HostError { error, .. } if error.code == HostErrorCode::LimitExceeded => {
                refused += 1;
                if refused == SURPLUS
                    && let Some(call) = asked.take()
                {
                    send(reply(call, refused.to_string()));
                }
            }
            _ => {}
        }
    }
}

fn host_call(call: CallId, function: FunctionId) -> AgentToNode {
    AgentToNode::HostCall {
        call,
        function,
        request: HostRequest {
            // Without a result, for which there might be no room.
            operation: Operation::KvDelete {
                bucket: None,
                key: "key".to_owned(),
            },
            payload: Bytes::new(),
        },
    }
}

fn log(function: FunctionId) -> AgentToNode {
    AgentToNode::Log {
        function,
        line: LogLine {
            level: LogLevel::Info,
            text: "x".repeat(20_000),
        },
    }
}

fn reply(call: CallId, body: impl Into<Bytes>) -> AgentToNode {
    AgentToNode::Reply {
        call,
        reply: Reply::from(body.into()),
    }
}
