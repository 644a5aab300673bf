//! QEMU's arguments: a `microvm` with a kernel, a read-only root, one processor or more, memory, and three virtio-serial
//! ports. No network, no USB, no display, no disk that can be written to.
//!
//! Everything that QEMU opens is given to it as a descriptor, so that it needs no right to any file, and no socket lies in
//! any folder.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

/// What distinguishes virtual machines of one driver from those of another; all of it is in the template's key.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) kvm: bool,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u32,
    /// Whether QEMU's own system call filter is used.
    pub(super) sandbox: bool,
}

/// The descriptors, by their numbers in QEMU.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Descriptors {
    pub(super) kernel: RawFd,
    pub(super) initrd: RawFd,
    pub(super) root: RawFd,
    pub(super) memory: RawFd,
    pub(super) monitor: RawFd,
    pub(super) control: RawFd,
    pub(super) link: RawFd,
    pub(super) log: RawFd,
    pub(super) console: RawFd,
}

/// How the machine gets its memory and its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// It boots. Its memory is shared with this process, which may make a template of it.
    Boot,
    /// It is restored. The memory is that of the template, and what it changes is its own.
    Template,
}

/// QEMU denies itself what it does not need any more: starting processes, becoming another user, old and rare calls.
pub(super) const SANDBOX: [&str; 2] = [
    "-sandbox",
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
];

/// Nothing that QEMU adds by itself.
pub(super) const BARE: [&str; 4] = ["-nodefaults", "-no-user-config", "-display", "none"];

/// The arguments of one machine. `tsc_khz` is for emulated ones, `name` is what it goes by in lists of processes.
pub(super) fn arguments(
    shape: &Shape,
    descriptors: &Descriptors,
    origin: Origin,
    tsc_khz: Option<u32>,
    name: &Path,
) -> Vec<OsString> {
    let file = |descriptor: RawFd| format!("/proc/self/fd/{descriptor}");
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |option: &str, value: String| arguments.extend([option.into(), value.into()]);
    add(
        "-machine",
        // An emulated guest that finds no clock chip looks for one for seconds.
        "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,usb=off,dump-guest-core=off,memory-backend=memory".into(),
    );
    let (accel, cpu) = match shape.kvm {
        true => ("kvm", "host"),
        false => ("tcg", "max"),
    };
    add("-accel", accel.into());
    add("-cpu", cpu.into());
    add("-smp", shape.vcpus.to_string());
    add("-m", format!("{}M", shape.memory_mib));
    let share = match origin {
        Origin::Boot => "on",
        Origin::Template => "off",
    };
    add(
        "-object",
        format!(
            "memory-backend-file,id=memory,size={}M,mem-path={},share={share}",
            shape.memory_mib,
            file(descriptors.memory)
        ),
    );
    add("-kernel", file(descriptors.kernel));
    add("-initrd", file(descriptors.initrd));
    add("-append", kernel_command_line(tsc_khz));
    add(
        "-blockdev",
        format!(
            "driver=file,node-name=root,filename={},read-only=on,locking=off",
            file(descriptors.root)
        ),
    );
    add("-device", "virtio-blk-device,drive=root".into());
    add("-device", "virtio-serial-device,max_ports=4".into());
    for (id, port, descriptor) in [
        ("control", "nex.control", descriptors.control),
        ("link", "nex.link", descriptors.link),
        ("log", "nex.log", descriptors.log),
    ] {
        add("-chardev", format!("socket,id={id},fd={descriptor}"));
        add("-device", format!("virtserialport,chardev={id},name={port}"));
    }
    add("-chardev", format!("socket,id=console,fd={}", descriptors.console));
    add("-serial", "chardev:console".into());
    add("-chardev", format!("socket,id=monitor,fd={}", descriptors.monitor));
    add("-mon", "chardev=monitor,mode=control".into());
    // A comma ends a value, two of them are one.
    add(
        "-name",
        format!("guest={}", name.display().to_string().replace(',', ",,")),
    );
    arguments.extend(BARE.map(OsString::from));
    arguments.push("-no-reboot".into());
    if shape.sandbox {
        arguments.extend(SANDBOX.map(OsString::from));
    }
    if origin == Origin::Template {
        arguments.extend(["-incoming", "defer"].map(OsString::from));
    }
    arguments
}

fn kernel_command_line(tsc_khz: Option<u32>) -> String {
    // The machine ends when the guest reboots, and a guest that panics reboots at once.
    let mut line = "console=ttyS0 quiet loglevel=3 reboot=t panic=-1 lsm=landlock,yama ipv6.disable=1 \
                    8250.nr_uarts=1 cryptomgr.notests random.trust_cpu=on"
        .to_owned();
    if let Some(khz) = tsc_khz {
        // Emulation knows no speculation to guard against.
        line.push_str(&format!(
            " mitigations=off tsc_early_khz={khz} tsc=reliable no_timer_check"
        ));
    }
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    fn line(origin: Origin, name: &str) -> Vec<String> {
        let shape = Shape {
            kvm: false,
            vcpus: 1,
            memory_mib: 256,
            sandbox: true,
        };
        arguments(
            &shape,
            &Descriptors::default(),
            origin,
            Some(2_100_000),
            Path::new(name),
        )
        .into_iter()
        .map(|argument| argument.into_string().unwrap())
        .collect()
    }

    #[test]
    fn a_copy_keeps_its_changes_to_itself() {
        let has = |line: &[String], text: &str| line.iter().any(|argument| argument.contains(text));
        let (boot, copy) = (line(Origin::Boot, "a"), line(Origin::Template, "a"));
        assert!(has(&boot, "share=on") && !has(&boot, "defer"));
        assert!(has(&copy, "share=off") && has(&copy, "defer"));
    }

    #[test]
    fn a_name_is_not_taken_for_options() {
        let line = line(Origin::Boot, "/run/a,debug-threads=on");
        assert!(line.contains(&"guest=/run/a,,debug-threads=on".to_owned()), "{line:?}");
    }
}
