//! Frames: the header, its limits, and the metadata codec. Everything read here may come from a hostile peer: sizes are
//! checked before anything is allocated for them, and every fault is a [`LinkError`].

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 20;

/// Largest metadata and payload of the frames of one direction, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// Metadata.
    pub meta: usize,
    /// Payload.
    pub payload: usize,
}

/// Why a link ended or a frame is not acceptable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The transport failed.
    #[error("link: {0}")]
    Io(#[from] io::Error),
    /// The stream ended inside a frame.
    #[error("the link ended inside a frame")]
    Truncated,
    /// The peer speaks another version of the protocol.
    #[error("the peer speaks version {theirs} of the link protocol, this side version {ours}")]
    Version {
        /// The peer's version.
        theirs: u64,
        /// This side's version.
        ours: u64,
    },
    /// The header is inconsistent or uses reserved bits.
    #[error("malformed frame header")]
    Header,
    /// Metadata or payload above the limit of this direction.
    #[error("frame of kind {kind} has {size} bytes of {part}, allowed are {limit}")]
    TooLarge {
        /// Kind in the header.
        kind: u8,
        /// `metadata` or `payload`.
        part: &'static str,
        /// Its size by the header.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// No such frame in this direction.
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    /// The metadata does not decode, or something is left over.
    #[error("frame of kind {0} has malformed metadata")]
    Meta(u8),
    /// A payload or id where none belongs.
    #[error("frame of kind {0} has an id or payload it must not have")]
    Unexpected(u8),
    /// The frame is well formed, but has no place here: before the handshake, or twice.
    #[error("unexpected {0} frame")]
    OutOfOrder(&'static str),
}

/// One received frame, not yet interpreted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: u8,
    /// The call, function or nonce it is about.
    pub id: u64,
    /// Postcard.
    pub meta: Bytes,
    /// Raw bytes.
    pub payload: Bytes,
}

/// What [`Frame::take`] found.
#[derive(Debug)]
pub(super) enum Taken {
    /// A whole frame.
    Frame(Frame),
    /// So many more bytes are needed, at least.
    Missing(usize),
}

impl Frame {
    /// Cuts the first frame out of the buffer, without copying.
    pub(super) fn take(buffer: &mut BytesMut, limits: FrameLimits) -> Result<Taken, LinkError> {
        if buffer.len() < HEADER_LEN {
            return Ok(Taken::Missing(HEADER_LEN - buffer.len()));
        }
        let mut header = &buffer[..HEADER_LEN];
        let len = header.get_u32_le() as usize;
        let meta = header.get_u32_le() as usize;
        let id = header.get_u64_le();
        let kind = header.get_u8();
        // Flags and the reserved field; a later version may use them only after telling so in its version.
        if header.get_u8() != 0 || header.get_u16_le() != 0 {
            return Err(LinkError::Header);
        }
        let Some(payload) = len.checked_sub(meta) else {
            return Err(LinkError::Header);
        };
        check(kind, "metadata", meta, limits.meta)?;
        check(kind, "payload", payload, limits.payload)?;
        if buffer.len() < HEADER_LEN + len {
            return Ok(Taken::Missing(HEADER_LEN + len - buffer.len()));
        }
        buffer.advance(HEADER_LEN);
        Ok(Taken::Frame(Self {
            kind,
            id,
            meta: buffer.split_to(meta).freeze(),
            payload: buffer.split_to(payload).freeze(),
        }))
    }

    /// Decodes the metadata, all of it.
    pub(super) fn meta<T: DeserializeOwned>(&self) -> Result<T, LinkError> {
        match postcard::take_from_bytes(&self.meta) {
            Ok((value, [])) => Ok(value),
            _ => Err(LinkError::Meta(self.kind)),
        }
    }

    /// Checks that there is no metadata.
    pub(super) fn no_meta(&self) -> Result<(), LinkError> {
        if self.meta.is_empty() {
            Ok(())
        } else {
            Err(LinkError::Meta(self.kind))
        }
    }

    /// Checks that there is no payload.
    pub(super) fn no_payload(&self) -> Result<(), LinkError> {
        if self.payload.is_empty() {
            Ok(())
        } else {
            Err(LinkError::Unexpected(self.kind))
        }
    }

    /// Checks that the id is unused.
    pub(super) fn no_id(&self) -> Result<(), LinkError> {
        if self.id == 0 {
            Ok(())
        } else {
            Err(LinkError::Unexpected(self.kind))
        }
    }
}

fn check(kind: u8, part: &'static str, size: usize, limit: usize) -> Result<(), LinkError> {
    if size > limit {
        return Err(LinkError::TooLarge {
            kind,
            part,
            size,
            limit,
        });
    }
    Ok(())
}

/// Writes a header over the placeholder at the start of a frame.
pub(super) fn put_header(mut at: &mut [u8], meta: usize, payload: usize, id: u64, kind: u8) {
    // Both sizes were checked against limits far below 4 GiB.
    at.put_u32_le((meta + payload) as u32);
    at.put_u32_le(meta as u32);
    at.put_u64_le(id);
    at.put_u8(kind);
    at.put_u8(0);
    at.put_u16_le(0);
}

/// Appends metadata to the bytes waiting to be written, up to a limit.
#[derive(Debug)]
pub struct MetaWriter<'a> {
    buffer: &'a mut BytesMut,
    /// Length of the buffer that must not be passed.
    end: usize,
}

impl<'a> MetaWriter<'a> {
    pub(super) fn new(buffer: &'a mut BytesMut, limit: usize) -> Self {
        let end = buffer.len() + limit;
        Self { buffer, end }
    }

    /// Appends one value; a tuple of fields decodes as the same tuple.
    pub(super) fn put<T: Serialize + ?Sized>(&mut self, value: &T) -> postcard::Result<()> {
        postcard::serialize_with_flavor(value, self)
    }
}

impl Flavor for &mut MetaWriter<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        if self.buffer.len() + bytes.len() > self.end {
            return Err(postcard::Error::SerializeBufferFull);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}
