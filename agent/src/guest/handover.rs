//! How an agent gets its link in a virtual machine: its standard input is a socket to `nex-init`. It writes [`READY`] when
//! its engine is warm, and waits for a descriptor. Both ends are here.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// What the agent writes.
pub(crate) const READY: u8 = b'R';

/// What comes with the descriptor.
const LINK: u8 = b'L';

/// The agent's end: says that it is ready, and waits for its link as long as it takes.
///
/// # Errors
/// When the other end is gone, or sends anything else.
pub(crate) fn wait_for_link(init: &mut UnixStream) -> io::Result<OwnedFd> {
    init.write_all(&[READY])?;
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        init,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let link = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    match link {
        Some(link) if byte == [LINK] => Ok(link),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no link came from nex-init")),
    }
}

/// The other end: hands the link over.
///
/// # Errors
/// When the agent is gone.
#[cfg_attr(
    not(test),
    allow(dead_code, reason = "nex-init, which is compiled apart, has this end")
)]
pub(crate) fn give(agent: impl AsFd, link: BorrowedFd<'_>) -> io::Result<()> {
    let descriptors = [link];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    rustix::net::sendmsg(agent, &[IoSlice::new(&[LINK])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use std::fs::File;
    use std::io::Read;

    use super::*;

    #[test]
    fn a_ready_agent_gets_its_link() {
        let (mut init, mut agent) = UnixStream::pair().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let agent = std::thread::spawn(move || wait_for_link(&mut agent));
        let mut byte = [0];
        init.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [READY]);
        give(&init, theirs.as_fd()).unwrap();
        drop(theirs);
        let mut link = UnixStream::from(agent.join().unwrap().unwrap());
        link.write_all(b"hello").unwrap();
        drop(link);
        let mut heard = String::new();
        File::from(OwnedFd::from(ours)).read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "hello");
    }

    #[test]
    fn an_agent_without_init_gives_up() {
        let (init, mut agent) = UnixStream::pair().unwrap();
        drop(init);
        assert!(wait_for_link(&mut agent).is_err());
    }

    #[test]
    fn a_message_without_a_descriptor_is_no_link() {
        let (mut init, mut agent) = UnixStream::pair().unwrap();
        init.write_all(b"L").unwrap();
        let error = wait_for_link(&mut agent).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
