//! The attempts. Each is written so that it succeeds in a process of root that nothing confines.

use std::ffi::{CStr, c_long};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::RwLock;

/// What came of an attempt.
type Outcome = io::Result<String>;

/// Makes an attempt. Targets are what its name says: a path, a process, a process and an address.
pub(crate) fn attempt(probe: &str, target: &str) -> Outcome {
    match probe {
        "read_file" | "show_file" => read_file(target),
        "list_root" => list_root(),
        "list_processes" => list_processes(),
        "write_anywhere" => write_anywhere(),
        "ptrace" => call(libc::SYS_ptrace, &[libc::PTRACE_TRACEME.into(), 0, 0, 0]),
        "mount" => mount(),
        "raw_socket" => socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        "packet_socket" => socket(libc::AF_PACKET, libc::SOCK_RAW, 0),
        "inet_socket" => socket(libc::AF_INET, libc::SOCK_STREAM, 0),
        "netlink_socket" => socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
        "unix_connect" => UnixStream::connect(target).map(|_| "connected".to_owned()),
        "tcp_connect" => std::net::TcpStream::connect(target).map(|_| "connected".to_owned()),
        "io_uring" => io_uring(),
        "bpf" => bpf(),
        "userfaultfd" => call(libc::SYS_userfaultfd, &[(libc::O_CLOEXEC | 1).into()]),
        "perf_event_open" => perf_event_open(),
        "keyctl" => call(libc::SYS_keyctl, &[0, -3, 1]),
        "memfd" => call(libc::SYS_memfd_create, &[c"x".as_ptr() as c_long, 0]),
        "shared_memory" => call(libc::SYS_shmget, &[0, 4096, (libc::IPC_CREAT | 0o600).into()]).and_then(remove_shared),
        "fork" => fork(),
        "fork_bomb" => fork_bomb(),
        "clone_without_thread" => clone_process(),
        "execve" => execve(),
        "run_program" => run_program(),
        "kill" => call(libc::SYS_kill, &[number(target)?, 0]),
        "process_vm_readv" => read_process(target),
        "unshare" => call(libc::SYS_unshare, &[libc::CLONE_NEWNS.into()]),
        "setuid" => call(libc::SYS_setresuid, &[0, 0, 0]),
        "capabilities" => capabilities(),
        "chroot" => call(libc::SYS_chroot, &[c"/".as_ptr() as c_long]),
        "priority" => call(libc::SYS_setpriority, &[libc::PRIO_PROCESS.into(), 0, -1]),
        "raise_limit" => raise_limit(),
        "open_descriptors" => open_descriptors(),
        "show_descriptors" => descriptors(),
        "threads" => threads(number(target)?),
        "allocate" => allocate(number(target)?),
        "fill_disk" => fill_disk(number(target)?),
        "hang" => hang(),
        _ => Err(io::Error::other(format!("there is no attempt {probe}"))),
    }
}

fn number(text: &str) -> io::Result<c_long> {
    text.parse().map_err(io::Error::other)
}

fn call(number: c_long, arguments: &[c_long]) -> Outcome {
    let argument = |at: usize| arguments.get(at).copied().unwrap_or_default();
    // SAFETY: the arguments are numbers, or pointers to what lives long enough; those who call this see to that.
    let result = unsafe {
        libc::syscall(
            number,
            argument(0),
            argument(1),
            argument(2),
            argument(3),
            argument(4),
            argument(5),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result.to_string())
    }
}

fn read_file(path: &str) -> Outcome {
    let mut bytes = Vec::new();
    File::open(path)?.take(64 << 10).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn list(path: &str) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(path)?;
    entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// What is open, one a line.
fn descriptors() -> Outcome {
    let names = list("/proc/self/fd")?;
    let targets = names
        .iter()
        .filter_map(|name| fs::read_link(format!("/proc/self/fd/{name}")).ok());
    let targets: Vec<String> = targets.map(|target| target.display().to_string()).collect();
    Ok(targets.join("\n"))
}

fn list_root() -> Outcome {
    let names = list("/")?;
    if names.iter().any(|name| name == "etc") {
        Ok(names.join(" "))
    } else {
        Err(io::Error::other(format!("only {}", names.join(" "))))
    }
}

fn list_processes() -> Outcome {
    let own = std::process::id().to_string();
    let names = list("/proc")?;
    let others = names
        .iter()
        .filter(|name| name.parse::<u32>().is_ok() && **name != own)
        .count();
    if others > 0 {
        Ok(format!("{others} others"))
    } else {
        Err(io::Error::other("none but itself"))
    }
}

/// Where somebody might be allowed to write.
const FOLDERS: [&str; 10] = [
    "/", "/tmp", "/var/tmp", "/dev/shm", "/dev", "/run", "/proc", "/etc", "/root", ".",
];

fn write_anywhere() -> Outcome {
    let name = format!("escape-probe-{}", std::process::id());
    let mut error = io::Error::other("no folder");
    for folder in FOLDERS {
        let path = format!("{folder}/{name}");
        match File::create_new(&path) {
            Ok(_) => {
                fs::remove_file(&path)?;
                return Ok(folder.to_owned());
            }
            Err(refused) => error = refused,
        }
    }
    Err(error)
}

fn mount() -> Outcome {
    // In a namespace of this thread's own if it may have one; the host is to stay as it is.
    call(libc::SYS_unshare, &[libc::CLONE_NEWNS.into()])?;
    let private = libc::MS_PRIVATE | libc::MS_REC;
    let (slash, tmpfs) = (c"/".as_ptr() as c_long, c"tmpfs".as_ptr() as c_long);
    call(libc::SYS_mount, &[tmpfs, slash, 0, private.cast_signed(), 0])?;
    call(libc::SYS_mount, &[tmpfs, c"/proc".as_ptr() as c_long, tmpfs, 0, 0])
}

fn socket(domain: i32, kind: i32, protocol: i32) -> Outcome {
    call(libc::SYS_socket, &[domain.into(), kind.into(), protocol.into()])
}

fn io_uring() -> Outcome {
    let mut parameters = [0_u8; 120];
    call(libc::SYS_io_uring_setup, &[1, parameters.as_mut_ptr() as c_long])
}

fn bpf() -> Outcome {
    // BPF_MAP_CREATE of an array with one entry of 4 bytes.
    let mut attributes = [0_u32; 32];
    attributes[..4].copy_from_slice(&[2, 4, 4, 1]);
    call(libc::SYS_bpf, &[0, attributes.as_ptr() as c_long, 128])
}

fn perf_event_open() -> Outcome {
    // PERF_TYPE_SOFTWARE, its size, PERF_COUNT_SW_TASK_CLOCK.
    let mut attributes = [0_u32; 32];
    attributes[..3].copy_from_slice(&[1, 128, 1]);
    call(
        libc::SYS_perf_event_open,
        &[attributes.as_ptr() as c_long, 0, -1, -1, 0],
    )
}

fn remove_shared(id: String) -> Outcome {
    call(libc::SYS_shmctl, &[number(&id)?, libc::IPC_RMID.into(), 0])
}

fn fork() -> Outcome {
    // SAFETY: the child ends at once.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child == 0 {
        // SAFETY: it ends the child and nothing else.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: the child is ours, and nobody wants to know how it ended.
    unsafe { libc::waitpid(child, ptr::null_mut(), 0) };
    Ok(child.to_string())
}

fn fork_bomb() -> Outcome {
    for _ in 0..32 {
        fork()?;
    }
    Ok("32 processes".to_owned())
}

fn clone_process() -> Outcome {
    let child = call(libc::SYS_clone, &[libc::SIGCHLD.into()])?;
    if child == "0" {
        // SAFETY: it ends the child and nothing else.
        unsafe { libc::_exit(0) };
    }
    Ok(child)
}

/// This program, which is always there.
const ITSELF: &CStr = c"/proc/self/exe";

/// Where it succeeds, the agent is another program from then on, which ends at once.
fn execve() -> Outcome {
    let arguments = [ITSELF.as_ptr(), c"--help".as_ptr(), ptr::null()];
    call(
        libc::SYS_execve,
        &[ITSELF.as_ptr() as c_long, arguments.as_ptr() as c_long, 0],
    )
}

fn run_program() -> Outcome {
    let output = std::process::Command::new("/proc/self/exe").arg("--help").output()?;
    Ok(output.status.to_string())
}

/// The target is a process and the address of eight bytes in it.
fn read_process(target: &str) -> Outcome {
    let (pid, address) = target.split_once(' ').ok_or_else(|| io::Error::other("no address"))?;
    let mut buffer = [0_u8; 8];
    let ours = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let address: usize = address.parse().map_err(io::Error::other)?;
    let theirs = libc::iovec {
        iov_base: ptr::without_provenance_mut(address),
        iov_len: buffer.len(),
    };
    let arguments = [
        number(pid)?,
        &raw const ours as c_long,
        1,
        &raw const theirs as c_long,
        1,
        0,
    ];
    call(libc::SYS_process_vm_readv, &arguments)?;
    Ok(String::from_utf8_lossy(&buffer).into_owned())
}

fn capabilities() -> Outcome {
    let status = fs::read_to_string("/proc/self/status")?;
    let sets = status.lines().filter(|line| line.starts_with("Cap"));
    let any = sets
        .filter(|line| !line.ends_with("0000000000000000"))
        .collect::<Vec<_>>();
    if any.is_empty() {
        Err(io::Error::other("it has none"))
    } else {
        Ok(any.join(" "))
    }
}

fn raise_limit() -> Outcome {
    let limit = libc::rlimit {
        rlim_cur: 1024,
        rlim_max: 1024,
    };
    let arguments = [0, libc::RLIMIT_NOFILE.into(), &raw const limit as c_long, 0];
    call(libc::SYS_prlimit64, &arguments)
}

fn open_descriptors() -> Outcome {
    let mut open = Vec::new();
    for _ in 0..500 {
        open.push(File::open("/dev/null")?);
    }
    Ok(format!("{} files", open.len()))
}

/// Starts that many threads, and ends them again.
fn threads(count: c_long) -> Outcome {
    let gate = RwLock::new(());
    std::thread::scope(|scope| {
        let closed = gate.write();
        for _ in 0..count {
            let thread = std::thread::Builder::new().stack_size(16 << 10);
            thread.spawn_scoped(scope, || drop(gate.read()))?;
        }
        drop(closed);
        Ok(format!("{count} threads"))
    })
}

/// Takes so many bytes of memory, and keeps them.
fn allocate(bytes: c_long) -> Outcome {
    let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
    let kept = Vec::leak(vec![1_u8; bytes]);
    Ok(format!("{} bytes", kept.len()))
}

/// Writes so many bytes into a new file wherever that is possible, into memory that looks like a file, and into its own
/// program; tells where it could. What it made is removed.
fn fill_disk(bytes: c_long) -> Outcome {
    let content = vec![1_u8; usize::try_from(bytes).map_err(io::Error::other)?];
    let mut filled = Vec::new();
    let mut error = io::Error::other("no folder");
    let mut note = |place: &str, written: io::Result<()>| match written {
        Ok(()) => filled.push(place.to_owned()),
        Err(refused) => error = refused,
    };
    for folder in FOLDERS {
        let path = format!("{folder}/escape-probe-fill-{}", std::process::id());
        let written = File::create_new(&path).and_then(|mut file| {
            let written = file.write_all(&content);
            fs::remove_file(&path)?;
            written
        });
        note(folder, written);
    }
    let append = |path: &str| fs::OpenOptions::new().append(true).open(path)?.write_all(&content);
    note("its program", append("/proc/self/exe"));
    let memory = call(libc::SYS_memfd_create, &[c"x".as_ptr() as c_long, 0]);
    let memory = memory.and_then(|descriptor| append(&format!("/proc/self/fd/{descriptor}")));
    note("memory", memory);
    if filled.is_empty() {
        Err(error)
    } else {
        Ok(filled.join(" "))
    }
}

/// Never answers.
fn hang() -> Outcome {
    loop {
        std::thread::park();
    }
}
