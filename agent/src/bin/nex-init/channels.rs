//! The byte streams to the host. QEMU has virtio-serial ports with names; Firecracker has vsock, on which the guest listens.
//!
//! Both lose their host when the machine is restored from a template: the node that connects then is another one, and
//! begins with a message of its own.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::control::{self, Decoder, ToGuest, ToHost};
use crate::{during, stage};

const CONTROL_PORT: &str = "nex.control";
const LINK_PORT: &str = "nex.link";
const LOG_PORT: &str = "nex.log";

/// The vsock ports.
const CONTROL_VSOCK: u32 = 1;
const LINK_VSOCK: u32 = 2;

/// How long a host that is not there is left alone: a virtio-serial port without one is always ready, with nothing.
pub(super) const ABSENCE: Duration = Duration::from_millis(5);

/// How long the host may take to read a message, or to connect the link it asked for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes read at a time.
const READ_CHUNK: usize = 4 << 10;

/// The streams of this machine.
#[derive(Debug)]
pub(super) struct Channels {
    transport: Transport,
    decoder: Decoder,
}

#[derive(Debug)]
enum Transport {
    Serial {
        control: OwnedFd,
        link: PathBuf,
        /// No host was there when the port was last read.
        absent: bool,
    },
    Vsock {
        control: OwnedFd,
        link: OwnedFd,
        connection: Option<OwnedFd>,
    },
}

impl Channels {
    /// Finds them, and sends this process's standard error, which the agent inherits, to the host if there is a port
    /// for it.
    ///
    /// # Errors
    /// When there are none, or the system refuses to open them.
    pub(super) fn open() -> io::Result<Self> {
        let transport = stage::wait_for("a virtio-serial port or vsock", || {
            if let Some([control, link, log]) = serial_ports()? {
                // One who writes waits for the host to read, so no line is lost.
                let log = during(|| log.display().to_string(), File::options().write(true).open(&log))?;
                rustix::stdio::dup2_stderr(&log)?;
                let control = open_port(&control)?;
                return Ok(Some(Transport::Serial {
                    control,
                    link,
                    absent: false,
                }));
            }
            if !has_vsock() {
                return Ok(None);
            }
            Ok(Some(Transport::Vsock {
                control: listen(CONTROL_VSOCK)?,
                link: listen(LINK_VSOCK)?,
                connection: None,
            }))
        })?;
        Ok(Self {
            transport,
            decoder: Decoder::default(),
        })
    }

    /// What to poll for, to learn that [`receive`](Self::receive) may have something; `None` while the host is absent and
    /// it is to be tried after [`ABSENCE`].
    pub(super) fn interest(&self) -> Option<BorrowedFd<'_>> {
        match &self.transport {
            Transport::Serial { absent: true, .. } => None,
            Transport::Serial { control, .. } => Some(control.as_fd()),
            Transport::Vsock {
                control, connection, ..
            } => Some(connection.as_ref().unwrap_or(control).as_fd()),
        }
    }

    /// Whether a host is there, as far as is known.
    pub(super) fn is_connected(&self) -> bool {
        match &self.transport {
            Transport::Serial { absent, .. } => !absent,
            Transport::Vsock { connection, .. } => connection.is_some(),
        }
    }

    /// The next message of the host, if one is there. Does not wait.
    ///
    /// # Errors
    /// When the host does not keep to the protocol, or the system refuses.
    pub(super) fn receive(&mut self) -> io::Result<Option<ToGuest>> {
        let mut chunk = [0; READ_CHUNK];
        loop {
            if let Some(message) = self.decoder.decode().map_err(io::Error::other)? {
                return Ok(Some(message));
            }
            let read = match &mut self.transport {
                Transport::Serial { control, .. } => rustix::io::read(control, &mut chunk),
                Transport::Vsock {
                    connection: Some(connection),
                    ..
                } => rustix::io::read(connection, &mut chunk),
                Transport::Vsock {
                    control, connection, ..
                } => {
                    match rustix::net::accept_with(control, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                        Ok(accepted) => *connection = Some(accepted),
                        Err(Errno::AGAIN | Errno::INTR) => {}
                        Err(error) => return during(|| "vsock".to_owned(), Err(error)),
                    }
                    return Ok(None);
                }
            };
            match read {
                Ok(0) | Err(Errno::CONNRESET | Errno::PIPE) => {
                    self.disconnected();
                    return Ok(None);
                }
                Ok(read) => {
                    self.connected();
                    self.decoder.push(chunk.get(..read).unwrap_or_default());
                }
                Err(Errno::AGAIN | Errno::INTR) => {
                    self.connected();
                    return Ok(None);
                }
                Err(error) => return during(|| "control".to_owned(), Err(error)),
            }
        }
    }

    fn connected(&mut self) {
        if let Transport::Serial { absent, .. } = &mut self.transport {
            *absent = false;
        }
    }

    /// What the host had begun to say is lost; the next one begins anew.
    fn disconnected(&mut self) {
        self.decoder = Decoder::default();
        match &mut self.transport {
            Transport::Serial { absent, .. } => *absent = true,
            Transport::Vsock { connection, .. } => *connection = None,
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// When no host is there, or it does not read.
    pub(super) fn send(&self, message: &ToHost) -> io::Result<()> {
        let encoded = control::encode(message).map_err(io::Error::other)?;
        let mut rest = &encoded[..];
        let until = Instant::now() + PATIENCE;
        while !rest.is_empty() {
            let written = match &self.transport {
                Transport::Serial { control, .. } => rustix::io::write(control, rest),
                Transport::Vsock {
                    connection: Some(connection),
                    ..
                } => rustix::net::send(connection, rest, rustix::net::SendFlags::NOSIGNAL),
                Transport::Vsock { connection: None, .. } => Err(Errno::NOTCONN),
            };
            match written {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if Instant::now() < until => std::thread::sleep(ABSENCE),
                Err(error) => return during(|| format!("sending {}", message.name()), Err(error)),
            }
        }
        Ok(())
    }

    /// Opens the stream that becomes the agent's link.
    ///
    /// # Errors
    /// When the host has not connected it, or the system refuses.
    pub(super) fn open_link(&self) -> io::Result<OwnedFd> {
        match &self.transport {
            Transport::Serial { link, .. } => {
                let link = open_port(link)?;
                // A port that has not heard of its host yet reads as one that has ended.
                stage::wait_for("the host's end of the link", || Ok((!hung_up(&link)?).then_some(())))?;
                Ok(link)
            }
            Transport::Vsock { link, .. } => {
                if !readable(link.as_fd(), PATIENCE)? {
                    let message = format!("nobody connected to vsock port {LINK_VSOCK} within {PATIENCE:?}");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, message));
                }
                let link = rustix::net::accept_with(link, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
                during(|| "vsock".to_owned(), link)
            }
        }
    }
}

fn readable(descriptor: BorrowedFd<'_>, patience: Duration) -> io::Result<bool> {
    let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    Ok(poll(&mut polled, Some(&patience))? > 0)
}

fn hung_up(port: &OwnedFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(port, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(polled.iter().any(|polled| polled.revents().contains(PollFlags::HUP)))
}

fn open_port(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    during(
        || path.display().to_string(),
        rustix::fs::open(path, flags, Mode::empty()),
    )
}

/// The devices of our ports, once all of them are there.
fn serial_ports() -> io::Result<Option<[PathBuf; 3]>> {
    let entries = match fs::read_dir("/sys/class/virtio-ports") {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut found = [None, None, None];
    for entry in entries {
        let entry = entry?;
        // It has its name a moment after it appears.
        let Ok(name) = fs::read_to_string(entry.path().join("name")) else {
            continue;
        };
        let ports = [CONTROL_PORT, LINK_PORT, LOG_PORT];
        if let Some(slot) = found
            .iter_mut()
            .zip(ports)
            .find_map(|(slot, port)| (port == name.trim()).then_some(slot))
        {
            *slot = Some(Path::new("/dev").join(entry.file_name()));
        }
    }
    let [control, link, log] = found;
    Ok((|| Some([control?, link?, log?]))())
}

/// Whether this machine has an address on vsock, which it has once the device is there.
#[allow(unsafe_code, reason = "an ioctl without a safe wrapper")]
fn has_vsock() -> bool {
    /// `IOCTL_VM_SOCKETS_GET_LOCAL_CID`.
    const GET_LOCAL_CID: rustix::ioctl::Opcode = 0x7b9;
    let Ok(device) = File::open("/dev/vsock") else {
        return false;
    };
    // SAFETY: the operation writes an unsigned int.
    let cid = unsafe { rustix::ioctl::ioctl(&device, rustix::ioctl::Getter::<GET_LOCAL_CID, u32>::new()) };
    cid.is_ok_and(|cid| cid != libc::VMADDR_CID_ANY)
}

/// Listens on a vsock port.
#[allow(unsafe_code, reason = "rustix has no vsock addresses")]
fn listen(port: u32) -> io::Result<OwnedFd> {
    let what = || format!("listening on vsock port {port}");
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None);
    let socket = during(what, socket)?;
    // SAFETY: all zeroes are a valid address of this type, which is plain data.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = libc::VMADDR_CID_ANY;
    address.svm_port = port;
    let len = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: the address is as long as is said.
    let bound = unsafe {
        libc::bind(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            (&raw const address).cast(),
            len,
        )
    };
    if bound != 0 {
        return during(what, Err(io::Error::last_os_error()));
    }
    during(what, rustix::net::listen(&socket, 4))?;
    Ok(socket)
}
