//! What this program is when it is started as Firecracker or as its jailer.

#[path = "stub/api.rs"]
pub mod api;
#[path = "stub/guest.rs"]
pub mod guest;
#[path = "stub/http.rs"]
pub mod http;
#[path = "stub/jail.rs"]
pub mod jail;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

/// The entry of the stubs. As a test of its own it does nothing.
#[test]
fn process() {
    let (Ok(lab), Ok(role)) = (std::env::var("NEX_TEST_VMM"), std::env::var("NEX_TEST_ROLE")) else {
        return;
    };
    let arguments: Vec<String> = std::env::args()
        .skip_while(|argument| argument != "--")
        .skip(1)
        .collect();
    let recorder = Recorder::open(Path::new(&lab));
    let behaviour = std::fs::read_to_string(Path::new(&lab).join("behaviour")).unwrap();
    let behaviour = Behaviour::parse(&behaviour);
    let arguments = match role.as_str() {
        "jailer" => {
            recorder.write(&json!({"jailer": arguments}));
            jail::enter(&arguments)
        }
        _ => arguments,
    };
    recorder.write(&json!({"firecracker": arguments}));
    recorder.write(&json!({"pid": std::process::id(), "uid": rustix::process::getuid().as_raw()}));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let code = runtime.block_on(api::run(&arguments, behaviour, recorder));
    std::process::exit(code);
}

/// Ends the stub the way Firecracker does when it is started wrongly.
pub fn fail(code: i32, message: &str) -> ! {
    let mut stderr = std::io::stderr();
    _ = writeln!(stderr, "Error: {message}");
    std::process::exit(code);
}

/// Writes down what happens, one JSON value a line.
#[derive(Clone)]
pub struct Recorder(Arc<File>);

impl Recorder {
    fn open(lab: &Path) -> Self {
        let file = File::options().append(true).open(lab.join("records")).unwrap();
        Self(Arc::new(file))
    }

    pub fn write(&self, record: &Value) {
        (&*self.0).write_all(format!("{record}\n").as_bytes()).unwrap();
    }
}

/// How the stub behaves; the text is `name` or `name argument`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// As documented.
    Well,
    /// Ends at once with this code.
    Exit(i32),
    /// Never opens the API's socket.
    NoSocket,
    /// Refuses this request.
    Refuse(String),
    /// Ends with code 148 when it gets this request.
    Die(String),
    /// Never answers this request.
    Silent(String),
    /// Answers everything with what is no HTTP.
    Garbage,
    /// Answers everything with a head, or a body, without end.
    EndlessHead,
    EndlessBody,
    /// Answers `GET /` with what is no such resource.
    NotAnInstance,
    /// Closes every connection into the guest.
    VsockCloses,
    /// Answers them with a line of its own.
    VsockLies,
    /// Never answers them.
    VsockSilent,
    /// The guest gives up instead of starting its agent.
    GuestFails,
    /// The guest sends what is no message.
    GuestBabbles,
    /// The guest starts no agent.
    GuestIdles,
    /// The guest sends a second `Ready` once its agent has its link.
    GuestRepeats,
    /// The guest does not end when it is told to.
    IgnoresShutdown,
    /// Nor when its keyboard says so.
    IgnoresEverything,
    /// The first control connection after a restore is lost.
    ResetsLate,
}

impl Behaviour {
    fn parse(text: &str) -> Self {
        let (name, argument) = text.split_once(' ').unwrap_or((text, ""));
        let argument = argument.to_owned();
        match name {
            "well" => Self::Well,
            "exit" => Self::Exit(argument.parse().unwrap()),
            "no-socket" => Self::NoSocket,
            "refuse" => Self::Refuse(argument),
            "die" => Self::Die(argument),
            "silent" => Self::Silent(argument),
            "garbage" => Self::Garbage,
            "endless-head" => Self::EndlessHead,
            "endless-body" => Self::EndlessBody,
            "not-an-instance" => Self::NotAnInstance,
            "vsock-closes" => Self::VsockCloses,
            "vsock-lies" => Self::VsockLies,
            "vsock-silent" => Self::VsockSilent,
            "guest-fails" => Self::GuestFails,
            "guest-babbles" => Self::GuestBabbles,
            "guest-idles" => Self::GuestIdles,
            "guest-repeats" => Self::GuestRepeats,
            "ignores-shutdown" => Self::IgnoresShutdown,
            "ignores-everything" => Self::IgnoresEverything,
            "resets-late" => Self::ResetsLate,
            other => panic!("no behaviour `{other}`"),
        }
    }
}
