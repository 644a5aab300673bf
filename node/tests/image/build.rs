//! `nex rootfs`, with a kernel and programs that are never run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nex_node::machines::image::GuestImage;
use serde_json::Value;

use super::support::{Bench, Kind, PROGRAM, cpio, run, squashfs, succeeds};

#[test]
fn the_same_ingredients_give_the_same_bytes() {
    let bench = Bench::new();
    bench.file("tree/b", b"b");
    bench.file("tree/a/x", b"x");
    let first = succeeds(&mut bench.rootfs(&["--add", "tree:/opt/tree"]));
    assert!(
        first.contains("image") && first.contains("kernel 6.1.0-test"),
        "{first}"
    );
    let image = bench.image("image");
    assert_eq!(
        image.keys().collect::<Vec<_>>(),
        ["image.json", "initrd.cpio", "rootfs.squashfs", "vmlinux"]
    );

    // What may differ between two machines: times, permissions that say nothing, and the order in which files were made.
    fs::remove_dir_all(bench.path("tree")).unwrap();
    bench.file("tree/a/x", b"x");
    let file = bench.file("tree/b", b"b");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    succeeds(&mut bench.rootfs(&["--add", "tree:/opt/tree", "-o", "other"]));
    assert!(bench.image("other") == image, "the second image differs");

    bench.file("tree/b", b"c");
    succeeds(&mut bench.rootfs(&["--add", "tree:/opt/tree", "-o", "other"]));
    assert!(bench.image("other") != image);
}

#[test]
fn the_image_holds_what_a_guest_needs() {
    let bench = Bench::new();
    let tool = bench.script("tool", "true");
    bench.file("data", b"some text");
    let mut command = bench.rootfs(&["--add", "tool:/opt/tool", "--add", "data:/etc/nex/data", "--json"]);
    let report: Value = serde_json::from_str(&succeeds(command.env("SOURCE_DATE_EPOCH", "1700000000"))).unwrap();
    assert_eq!(report["kernel_version"], "6.1.0-test");
    assert_eq!(report["customised"], serde_json::json!(["/opt/tool", "/etc/nex/data"]));

    let entries = squashfs(&bench.path("image/rootfs.squashfs"));
    for (path, entry) in &entries {
        assert_eq!((entry.header.uid, entry.header.gid), (0, 0), "{path}");
        assert_eq!(
            entry.header.mtime,
            if path == "/" { 0 } else { 1_700_000_000 },
            "{path}"
        );
    }
    let entry = |path: &str| entries.get(path).unwrap_or_else(|| panic!("{path} is missing"));
    let has = |path: &str, mode: u16, content: &[u8]| {
        assert!(entry(path).kind == Kind::File(content.to_vec()), "{path}");
        assert_eq!(entry(path).header.permissions, mode, "{path}");
    };
    has("/usr/bin/nex-agent", 0o755, &fs::read(PROGRAM).unwrap());
    has("/opt/tool", 0o755, &fs::read(tool).unwrap());
    has("/etc/nex/data", 0o644, b"some text");
    let Kind::File(passwd) = &entry("/etc/passwd").kind else {
        panic!("/etc/passwd is no file");
    };
    assert!(String::from_utf8_lossy(passwd).contains("nex:x:1000:1000:"));
    for (path, mode) in [
        ("/dev", 0o755),
        ("/proc", 0o755),
        ("/sys", 0o755),
        ("/run", 0o755),
        ("/tmp", 0o1777),
    ] {
        assert_eq!(entry(path).kind, Kind::Folder, "{path}");
        assert_eq!(entry(path).header.permissions, mode, "{path}");
        assert!(
            !entries.keys().any(|other| other.starts_with(&format!("{path}/"))),
            "{path} is not empty"
        );
    }
    // The loader stands where the program says, the C library where it is on this machine.
    for part in ["/ld-", "/libc."] {
        let path = entries
            .keys()
            .find(|path| path.contains(part))
            .unwrap_or_else(|| panic!("{part} is missing"));
        has(path, 0o755, &fs::read(path).unwrap());
    }

    let names = cpio(&bench.image("image")["initrd.cpio"]);
    for name in ["init", "dev", "dev/console", "newroot", "proc", "sys"] {
        assert!(
            names.iter().any(|other| other == name),
            "{name} is missing in {names:?}"
        );
    }
    assert!(names.iter().any(|name| name.contains("/libc.")), "{names:?}");
}

#[test]
fn the_script_changes_the_root_file_system() {
    let bench = Bench::new();
    bench.script(
        "setup.sh",
        r#"cd "$NEX_ROOTFS" && mkdir etc/more && echo hello > etc/more/file && ln -s more etc/link"#,
    );
    succeeds(&mut bench.rootfs(&["--script", "setup.sh"]));
    let entries = squashfs(&bench.path("image/rootfs.squashfs"));
    assert_eq!(entries["/etc/more/file"].kind, Kind::File(b"hello\n".to_vec()));
    assert_eq!(entries["/etc/link"].kind, Kind::Link(PathBuf::from("more")));
}

/// An image, and everything that can go wrong when it is made anew.
#[test]
fn what_goes_wrong_is_said_and_the_old_image_stays() {
    let bench = Bench::new();
    succeeds(&mut bench.rootfs(&[]));
    let before = bench.image("image");
    bench.file("data", b"");
    bench.file("text", b"no program");
    bench.file(
        "no.deb",
        &[
            b"!<arch>\ndebian-binary   0           0     0     100644  400       `\n".as_slice(),
            b"2.0\n",
        ]
        .concat(),
    );
    bench.file(
        "zimage",
        &[vec![0; 0x202], b"HdrS\x0f\x02".to_vec(), vec![0xff; 100]].concat(),
    );
    bench.script("fails.sh", "echo this is why >&2; exit 3");
    bench.script("breaks.sh", "echo > usr/bin/nex-agent");
    bench.script("removes.sh", "rmdir proc");
    bench.script("pipes.sh", "mkfifo etc/pipe");
    bench.script("links.sh", "ln -s /etc opt");
    let program = fs::read(PROGRAM).unwrap();
    let mut broken = program.clone();
    let library = b"libc.so.6\0";
    for at in 0..program.len() - library.len() {
        if program[at..].starts_with(library) {
            broken[at + 3] = b'q';
        }
    }
    bench.file("broken", &broken);

    let cases: [(&[&str], i32, &str); 21] = [
        (
            &["--agent", "broken"],
            2,
            "the shared library libq.so.6, which broken needs, was not found; looked in /",
        ),
        (&["--init", "broken"], 2, "libq.so.6"),
        (
            &["--agent", "text"],
            2,
            "text cannot run in a guest: it is not an ELF file",
        ),
        (&["--agent", "none"], 1, "none: No such file"),
        (&["--kernel", "none"], 2, "`nex preflight --driver qemu` installs one"),
        (&["--kernel", "text"], 2, "vmlinux"),
        (&["--kernel", "zimage"], 2, "zimage cannot be used: it is truncated"),
        (&["--kernel", "no.deb"], 2, "no.deb cannot be unpacked: it is truncated"),
        (&["--kernel", "vmlinux", "--modules", "image"], 2, "holds no modules"),
        (&["--add", "data:/../etc/x"], 2, "leads out of the image"),
        (&["--add", "data"], 2, "SOURCE:DEST"),
        (&["--add", "none:/etc/x"], 2, "none: No such file"),
        (
            &["--add", "data:/usr/bin/nex-agent"],
            2,
            "/usr/bin/nex-agent is there already and belongs to nex",
        ),
        (
            &["--add", "data:/usr/bin/nex-agent/x"],
            2,
            "/usr/bin/nex-agent is not a folder",
        ),
        (&["--add", "data:/proc/x"], 2, "the guest mounts something over /proc"),
        (&["--script", "fails.sh"], 1, "this is why"),
        (
            &["--script", "breaks.sh"],
            1,
            "changed /usr/bin/nex-agent, which belongs to nex",
        ),
        (&["--script", "removes.sh"], 1, "removed the folder /proc"),
        (&["--script", "pipes.sh"], 1, "/etc/pipe is neither a file"),
        (&["--image", "alpine"], 2, "`--image` has no meaning here"),
        (&["--size", "157286400"], 2, "`--size` has no meaning here"),
    ];
    for (arguments, code, expected) in cases {
        let ran = run(&mut bench.rootfs(arguments));
        assert_eq!(ran.code, code, "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{arguments:?}: {}", ran.stderr);
        assert!(bench.image("image") == before, "{arguments:?} changed the image");
        assert!(
            !bench.names().iter().any(|name| name.contains("partial")),
            "{arguments:?}: {:?}",
            bench.names()
        );
    }
    let ran = run(bench.rootfs(&[]).env("SOURCE_DATE_EPOCH", "yesterday"));
    assert_eq!(
        (ran.code, ran.stderr.contains("SOURCE_DATE_EPOCH is `yesterday`")),
        (2, true),
        "{}",
        ran.stderr
    );
    // The link that a script made is packed; nothing is written through it.
    succeeds(&mut bench.rootfs(&["--script", "links.sh"]));
}

#[test]
fn a_folder_that_is_no_image_is_not_replaced() {
    let bench = Bench::new();
    bench.file("image/thesis.txt", b"years of work");
    let ran = run(&mut bench.rootfs(&[]));
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("is there already and is no guest image"),
        "{}",
        ran.stderr
    );
    assert_eq!(bench.image("image")["thesis.txt"], b"years of work");
}

#[test]
fn a_damaged_image_is_not_booted() {
    let bench = Bench::new();
    let reason = |folder: &Path| GuestImage::open(folder).unwrap_err().to_string();
    assert!(reason(&bench.path("image")).contains("`nex preflight` or `nex rootfs` makes one"));
    succeeds(&mut bench.rootfs(&[]));
    let folder = bench.path("image");
    let image = GuestImage::open(&folder).unwrap();
    assert!(image.vmlinux().is_file() && image.initrd().is_file() && image.rootfs().is_file());
    assert_eq!(image.id().len(), 64);

    let rootfs = fs::read(image.rootfs()).unwrap();
    fs::write(image.rootfs(), &rootfs[..rootfs.len() - 1]).unwrap();
    assert!(
        reason(&folder).contains("rootfs.squashfs is damaged"),
        "{}",
        reason(&folder)
    );
    fs::write(image.rootfs(), &rootfs).unwrap();
    fs::remove_file(image.initrd()).unwrap();
    assert!(
        reason(&folder).contains("initrd.cpio is missing"),
        "{}",
        reason(&folder)
    );
    bench.file("image/image.json", br#"{"format": 7}"#);
    assert!(
        reason(&folder).contains("format 7, this nex boots format 1"),
        "{}",
        reason(&folder)
    );
    bench.file("image/image.json", b"{");
    assert!(reason(&folder).contains("image.json"), "{}", reason(&folder));

    // It is an image for all that, and can be made anew.
    succeeds(&mut bench.rootfs(&[]));
    GuestImage::open(&folder).unwrap();
}
