//! The jailer: checks its arguments, makes the jail, and locks itself in as the machine's user.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, setrlimit};

use super::fail;

/// Does what the jailer does before it becomes Firecracker, and returns Firecracker's arguments.
pub fn enter(arguments: &[String]) -> Vec<String> {
    let mut own = arguments.split(|argument| argument == "--");
    let (own, theirs) = (own.next().unwrap_or_default(), own.next().unwrap_or_default());
    let options: Vec<(&str, &str)> = own
        .chunks(2)
        .map(|pair| match pair {
            [name, value] if name.starts_with("--") => (name.as_str(), value.as_str()),
            other => fail(1, &format!("jailer: unexpected {other:?}")),
        })
        .collect();
    let known = [
        "--id",
        "--exec-file",
        "--uid",
        "--gid",
        "--chroot-base-dir",
        "--cgroup-version",
        "--parent-cgroup",
        "--cgroup",
        "--resource-limit",
    ];
    if let Some((name, _)) = options.iter().find(|(name, _)| !known.contains(name)) {
        fail(1, &format!("jailer: unknown {name}"));
    }
    let all = |wanted: &'static str| {
        options
            .iter()
            .filter(move |(name, _)| *name == wanted)
            .map(|(_, value)| *value)
    };
    let one = |wanted: &'static str| {
        let mut values = all(wanted);
        match (values.next(), values.next()) {
            (Some(value), None) => value,
            _ => fail(1, &format!("jailer: {wanted} must be given once")),
        }
    };
    let id = one("--id");
    if !(1..=64).contains(&id.len()) || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        fail(1, &format!("jailer: invalid id {id}"));
    }
    let program = fs::canonicalize(one("--exec-file")).unwrap_or_else(|error| fail(1, &format!("jailer: {error}")));
    let number = |name| {
        one(name)
            .parse()
            .unwrap_or_else(|_| fail(1, &format!("jailer: invalid {name}")))
    };
    let (uid, gid): (u32, u32) = (number("--uid"), number("--gid"));
    let base = fs::canonicalize(one("--chroot-base-dir")).unwrap_or_else(|error| fail(1, &format!("jailer: {error}")));
    let root = base.join(program.file_name().unwrap()).join(id).join("root");

    fs::create_dir_all(&root).unwrap();
    let copy = root.join(program.file_name().unwrap());
    fs::copy(&program, &copy).unwrap();
    chown(&copy, Some(uid), Some(gid)).unwrap();
    for limit in all("--resource-limit") {
        let (name, value) = limit.split_once('=').unwrap();
        let value = Some(value.parse().unwrap());
        let resource = match name {
            "fsize" => Resource::Fsize,
            "no-file" => Resource::Nofile,
            other => fail(1, &format!("jailer: no resource {other}")),
        };
        let limit = Rlimit {
            current: value,
            maximum: value,
        };
        setrlimit(resource, limit).unwrap();
    }
    let settings: Vec<&str> = all("--cgroup").collect();
    if !settings.is_empty() {
        if one("--cgroup-version") != "2" || settings.iter().any(|setting| setting.split('=').count() != 2) {
            fail(1, "jailer: wrong cgroup arguments");
        }
        // Which controllers there are differs between hosts, so the settings are only checked.
        let group = cgroup_root().unwrap().join(one("--parent-cgroup")).join(id);
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    }
    lock_in(&root, uid, gid);

    let mut arguments: Vec<String> = ["--id", id, "--start-time-us", "1", "--start-time-cpu-us", "1"]
        .map(str::to_owned)
        .to_vec();
    arguments.extend(["--parent-cpu-time-us", "1"].map(str::to_owned));
    arguments.extend(theirs.iter().cloned());
    arguments
}

pub fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    line.split(' ').nth(1).map(PathBuf::from)
}

#[allow(unsafe_code, reason = "only the C library changes the user of all threads")]
fn lock_in(root: &Path, uid: u32, gid: u32) {
    let path = CString::new(root.to_str().unwrap()).unwrap();
    // SAFETY: the path ends with a zero, and the functions touch no other memory of ours.
    unsafe {
        assert_eq!(libc::chroot(path.as_ptr()), 0, "chroot");
    }
    std::env::set_current_dir("/").unwrap();
    for folder in ["/", "/dev", "/dev/net", "/run"] {
        fs::create_dir_all(folder).unwrap();
        fs::set_permissions(folder, Permissions::from_mode(0o700)).unwrap();
        chown(folder, Some(uid), Some(gid)).unwrap();
    }
    // SAFETY: as above.
    unsafe {
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0, "setgroups");
        assert_eq!(libc::setgid(gid), 0, "setgid");
        assert_eq!(libc::setuid(uid), 0, "setuid");
    }
}
