//! Firecracker's process: its arguments, its API, its states, and what it refuses in which of them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{Mutex, watch};

use super::guest::Guest;
use super::http::{Connection, Request};
use super::{Behaviour, Recorder, fail};

const PRE_BOOT: &str = "The requested operation is not supported before starting the microVM.";
const POST_BOOT: &str = "The requested operation is not supported after starting the microVM.";

/// Runs until the guest or the client ends it; returns the exit code.
pub async fn run(arguments: &[String], behaviour: Behaviour, recorder: Recorder) -> i32 {
    let (mut id, mut socket) = ("anonymous-instance".to_owned(), "/run/firecracker.socket".to_owned());
    let mut rest = arguments.iter();
    while let Some(name) = rest.next() {
        let mut value = || {
            rest.next()
                .cloned()
                .unwrap_or_else(|| fail(153, &format!("{name} lacks its value")))
        };
        match name.as_str() {
            "--id" => id = value(),
            "--api-sock" => socket = value(),
            "--level" => {
                let level = value();
                if !["Error", "Warning", "Info", "Debug", "Trace", "Off"].contains(&level.as_str()) {
                    fail(152, &format!("invalid level {level}"));
                }
            }
            "--start-time-us" | "--start-time-cpu-us" | "--parent-cpu-time-us" => drop(value()),
            "--show-level" => {}
            other => fail(153, &format!("Found argument {other} which wasn't expected")),
        }
    }
    match behaviour {
        Behaviour::Exit(code) => fail(code, "as the test wants it"),
        Behaviour::NoSocket => std::future::pending().await,
        _ => {}
    }
    // It does not take over a socket that is there.
    let listener = UnixListener::bind(&socket).unwrap_or_else(|error| fail(1, &format!("{socket}: {error}")));
    let (exit, mut code) = watch::channel(None);
    let process = Arc::new(Process {
        behaviour: behaviour.clone(),
        recorder: recorder.clone(),
        exit,
        vmm: Mutex::new(Vmm {
            id,
            state: "Not started",
            boot_path: false,
            machine: None,
            boot_source: None,
            drives: Vec::new(),
            vsock: None,
            balloon: None,
            running: watch::channel(false).0,
            guest: None,
        }),
    });
    let serve = async {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(converse(process.clone(), Connection::new(stream)));
        }
    };
    tokio::select! {
        code = code.wait_for(Option::is_some) => code.unwrap().unwrap(),
        () = serve => unreachable!("it accepts for ever"),
    }
}

struct Process {
    behaviour: Behaviour,
    recorder: Recorder,
    exit: watch::Sender<Option<i32>>,
    vmm: Mutex<Vmm>,
}

async fn converse(process: Arc<Process>, mut connection: Connection) -> io::Result<()> {
    while let Some(request) = connection.next().await? {
        match &process.behaviour {
            Behaviour::Garbage => return connection.raw(b"220 smtp.example.com\r\n\r\n").await,
            Behaviour::EndlessHead => {
                connection.raw(b"HTTP/1.1 200 OK\r\n").await?;
                loop {
                    connection.raw(b"X-More: and more and more\r\n").await?;
                }
            }
            Behaviour::EndlessBody => {
                connection
                    .raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
                    .await?;
                loop {
                    connection.raw(&[b' '; 4096]).await?;
                }
            }
            _ => {}
        }
        let name = format!("{} {}", request.method, request.path);
        let body = match request.body[..] {
            [] => Value::Null,
            _ => serde_json::from_slice(&request.body).unwrap(),
        };
        process.recorder.write(&json!({"request": name, "body": body}));
        let special = match &process.behaviour {
            Behaviour::Refuse(which) if *which == name => Some(Err("not today".to_owned())),
            Behaviour::Die(which) if *which == name => {
                fail(148, "Shutting down VM after intercepting a bad syscall (7).")
            }
            Behaviour::Silent(which) if *which == name => std::future::pending().await,
            Behaviour::NotAnInstance if name == "GET /" => Some(Ok(Some(json!({"id": 1})))),
            _ => None,
        };
        let answer = match special {
            Some(answer) => answer,
            None => process.vmm.lock().await.handle(&process, &request).await,
        };
        match answer {
            Ok(None) => connection.answer("204 No Content", "").await?,
            Ok(Some(body)) => connection.answer("200 OK", &body.to_string()).await?,
            Err(fault) => {
                let body = json!({"fault_message": fault}).to_string();
                connection.answer("400 Bad Request", &body).await?;
                // A machine that is half restored is of no use to anybody.
                if fault.starts_with("Load snapshot error: Failed") {
                    process.exit.send_replace(Some(1));
                }
            }
        }
    }
    Ok(())
}

struct Vmm {
    id: String,
    state: &'static str,
    /// Something was configured that a snapshot would bring with it.
    boot_path: bool,
    machine: Option<MachineConfig>,
    boot_source: Option<BootSource>,
    drives: Vec<Drive>,
    vsock: Option<(Vsock, Option<UnixListener>)>,
    balloon: Option<Balloon>,
    running: watch::Sender<bool>,
    guest: Option<Guest>,
}

type Answer = Result<Option<Value>, String>;

impl Vmm {
    async fn handle(&mut self, process: &Process, request: &Request) -> Answer {
        let body = &request.body[..];
        let path: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
        let before = self.state == "Not started";
        let configure = if before { Ok(()) } else { Err(POST_BOOT.to_owned()) };
        let operate = if before { Err(PRE_BOOT.to_owned()) } else { Ok(()) };
        match (request.method.as_str(), &path[..]) {
            ("GET", [""]) => {
                let (id, state) = (&self.id, self.state);
                let info = json!({"id": id, "state": state, "vmm_version": "1.17.0", "app_name": "Firecracker"});
                return Ok(Some(info));
            }
            ("GET", ["balloon", "statistics"]) => {
                operate?;
                return self.balloon_statistics();
            }
            ("PUT", ["machine-config"]) => {
                let machine: MachineConfig = parse(body)?;
                configure?;
                self.boot_path = true;
                machine.check()?;
                self.machine = Some(machine);
            }
            ("PUT", ["boot-source"]) => {
                let source: BootSource = parse(body)?;
                configure?;
                self.boot_path = true;
                for file in [Some(&source.kernel_image_path), source.initrd_path.as_ref()]
                    .into_iter()
                    .flatten()
                {
                    File::open(file).map_err(|error| format!("Boot source error: {file}: {error}"))?;
                }
                self.boot_source = Some(source);
            }
            ("PUT", ["drives", id]) => {
                let drive: Drive = parse(body)?;
                if drive.drive_id != *id {
                    return Err("The id from the path does not match the id from the body!".to_owned());
                }
                configure?;
                self.boot_path = true;
                drive.open()?;
                self.drives.push(drive);
            }
            ("PUT", ["vsock"]) => {
                let vsock: Vsock = parse(body)?;
                configure?;
                self.boot_path = true;
                if vsock.guest_cid < 3 {
                    return Err("Vsock config error: invalid guest_cid".to_owned());
                }
                let listener = bind(&vsock)?;
                self.vsock = Some((vsock, Some(listener)));
            }
            ("PUT", ["entropy"]) => {
                let _: Entropy = parse(body)?;
                configure?;
                self.boot_path = true;
            }
            ("PUT", ["balloon"]) => {
                let balloon: Balloon = parse(body)?;
                configure?;
                self.boot_path = true;
                self.balloon = Some(balloon);
            }
            ("PUT", ["actions"]) => match parse::<Action>(body)?.action_type.as_str() {
                "InstanceStart" => {
                    configure?;
                    if self.boot_source.is_none() {
                        return Err(
                            "Start microvm error: Cannot start microvm without kernel configuration.".to_owned(),
                        );
                    }
                    self.start_guest(process, false);
                    self.run_on();
                }
                "SendCtrlAltDel" => {
                    operate?;
                    if process.behaviour != Behaviour::IgnoresEverything {
                        process.exit.send_replace(Some(0));
                    }
                }
                other => return Err(format!("unknown variant `{other}`")),
            },
            ("PATCH", ["vm"]) => match parse::<Vm>(body)?.state.as_str() {
                "Paused" => {
                    operate?;
                    self.state = "Paused";
                    self.running.send_replace(false);
                }
                "Resumed" => {
                    operate?;
                    self.run_on();
                }
                other => return Err(format!("unknown variant `{other}`")),
            },
            ("PUT", ["snapshot", "create"]) => {
                let create: SnapshotCreate = parse(body)?;
                operate?;
                self.create_snapshot(&create)?;
            }
            ("PUT", ["snapshot", "load"]) => {
                let load: SnapshotLoad = parse(body)?;
                configure?;
                if self.boot_path {
                    return Err("Load snapshot error: LoadSnapshotNotAllowed".to_owned());
                }
                let loaded = self.load_snapshot(process, &load);
                loaded.map_err(|error| format!("Load snapshot error: Failed to restore from snapshot: {error}"))?;
                self.state = "Paused";
                if load.resume_vm {
                    self.run_on();
                }
            }
            (method, _) => {
                return Err(format!(
                    "Invalid request method and/or path: {method} {}.",
                    request.path
                ));
            }
        }
        Ok(None)
    }

    fn run_on(&mut self) {
        self.state = "Running";
        self.running.send_replace(true);
    }

    fn start_guest(&mut self, process: &Process, restored: bool) {
        let Some((_, listener)) = &mut self.vsock else { return };
        let (behaviour, recorder, exit) = (
            process.behaviour.clone(),
            process.recorder.clone(),
            process.exit.clone(),
        );
        let guest = Guest::new(behaviour, recorder, exit, self.running.subscribe(), restored);
        tokio::spawn(guest.clone().listen(listener.take().unwrap()));
        self.guest = Some(guest);
    }

    fn balloon_statistics(&self) -> Answer {
        match &self.balloon {
            Some(balloon) if balloon.stats_polling_interval_s > 0 => {
                let amount = balloon.amount_mib;
                Ok(Some(json!({
                    "target_pages": amount * 256, "actual_pages": amount * 256, "target_mib": amount, "actual_mib": amount,
                    "available_memory": 123_456_789, "a_statistic_of_tomorrow": 1,
                })))
            }
            _ => Err("Internal VMM error: Balloon statistics are not enabled.".to_owned()),
        }
    }

    fn create_snapshot(&self, create: &SnapshotCreate) -> Result<(), String> {
        if self.state != "Paused" || !matches!(create.snapshot_type.as_str(), "Full" | "Diff") {
            return Err("Create snapshot error: the microVM is not paused".to_owned());
        }
        let write = || {
            let state = State {
                vsock: self.vsock.as_ref().map(|(vsock, _)| vsock.clone()),
                drives: self.drives.clone(),
                balloon: self.balloon.clone(),
            };
            fs::write(&create.snapshot_path, serde_json::to_vec(&state)?)?;
            let memory = File::create(&create.mem_file_path)?;
            memory.set_len(self.machine.as_ref().map_or(128, |machine| machine.mem_size_mib) << 20)?;
            memory.write_all_at(b"memory", 0)
        };
        write().map_err(|error| format!("Create snapshot error: {error}"))
    }

    fn load_snapshot(&mut self, process: &Process, load: &SnapshotLoad) -> Result<(), String> {
        if load.mem_backend.backend_type != "File" {
            return Err("no page fault handler".to_owned());
        }
        let text = fs::read(&load.snapshot_path).map_err(|error| error.to_string())?;
        let state: State = serde_json::from_slice(&text).map_err(|error| format!("CRC mismatch: {error}"))?;
        let memory = File::open(&load.mem_backend.backend_path).map_err(|error| error.to_string())?;
        let mut start = [0; 6];
        memory.read_exact_at(&mut start, 0).map_err(|error| error.to_string())?;
        for drive in &state.drives {
            drive.open()?;
        }
        if let Some(vsock) = state.vsock {
            let listener = bind(&vsock)?;
            self.vsock = Some((vsock, Some(listener)));
        }
        (self.drives, self.balloon) = (state.drives, state.balloon);
        self.start_guest(process, true);
        Ok(())
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body)
        .map_err(|error| format!("An error occurred when deserializing the json body of a request: {error}."))
}

fn bind(vsock: &Vsock) -> Result<UnixListener, String> {
    UnixListener::bind(&vsock.uds_path).map_err(|error| format!("Cannot create backend for vsock device: {error}"))
}

/// What a snapshot is here.
#[derive(Serialize, Deserialize)]
struct State {
    vsock: Option<Vsock>,
    drives: Vec<Drive>,
    balloon: Option<Balloon>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MachineConfig {
    vcpu_count: u8,
    mem_size_mib: u64,
    #[serde(default)]
    smt: bool,
    cpu_template: Option<String>,
    #[serde(default)]
    track_dirty_pages: bool,
    huge_pages: Option<String>,
}

impl MachineConfig {
    fn check(&self) -> Result<(), String> {
        let templates = ["C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"];
        let fits = (1..=32).contains(&self.vcpu_count)
            && self.mem_size_mib > 0
            && !(self.smt || self.track_dirty_pages)
            && self
                .cpu_template
                .as_ref()
                .is_none_or(|name| templates.contains(&name.as_str()))
            && self
                .huge_pages
                .as_ref()
                .is_none_or(|name| ["None", "Transparent", "2M"].contains(&name.as_str()));
        if fits {
            Ok(())
        } else {
            Err("Machine config error".to_owned())
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BootSource {
    kernel_image_path: String,
    initrd_path: Option<String>,
    #[serde(rename = "boot_args")]
    _boot_args: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Drive {
    drive_id: String,
    is_root_device: bool,
    is_read_only: bool,
    path_on_host: String,
    rate_limiter: Option<RateLimiter>,
}

impl Drive {
    fn open(&self) -> Result<(), String> {
        let opened = File::options()
            .read(true)
            .write(!self.is_read_only)
            .open(Path::new(&self.path_on_host));
        opened
            .map(drop)
            .map_err(|error| format!("Drive config error: {}: {error}", self.path_on_host))
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RateLimiter {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenBucket {
    size: u64,
    refill_time: u64,
    one_time_burst: Option<u64>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vsock {
    guest_cid: u32,
    uds_path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entropy {}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Balloon {
    amount_mib: u32,
    deflate_on_oom: bool,
    #[serde(default)]
    stats_polling_interval_s: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Action {
    action_type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vm {
    state: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotCreate {
    snapshot_type: String,
    snapshot_path: String,
    mem_file_path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotLoad {
    snapshot_path: String,
    mem_backend: MemoryBackend,
    #[serde(default)]
    resume_vm: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MemoryBackend {
    backend_type: String,
    backend_path: String,
}
