//! Compressed data of kernels, modules and packages, told apart by the bytes they begin with.

use std::io::{self, Read};

/// How something is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Xz,
    Zstd,
    /// The format of `lz4 -l`, which the kernel uses.
    Lz4Legacy,
}

const MAGICS: [(&[u8], Compression); 4] = [
    (&[0x1f, 0x8b], Compression::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
    (&[0x02, 0x21, 0x4c, 0x18], Compression::Lz4Legacy),
];

/// The most that one block of legacy LZ4 holds.
const LZ4_BLOCK: usize = 8 << 20;

impl Compression {
    pub(super) fn of(data: &[u8]) -> Self {
        let found = MAGICS.iter().find(|(magic, _)| data.starts_with(magic));
        found.map_or(Self::None, |(_, compression)| *compression)
    }

    /// Reads what is compressed in `data`; whatever follows it is left alone.
    pub(super) fn reader(self, data: &[u8]) -> io::Result<Box<dyn Read + '_>> {
        Ok(match self {
            Self::None => Box::new(data),
            Self::Gzip => Box::new(flate2::read::GzDecoder::new(data)),
            Self::Xz => Box::new(lzma_rust2::XzReader::new(data, false)),
            Self::Zstd => Box::new(ruzstd::decoding::StreamingDecoder::new(data).map_err(io::Error::other)?),
            Self::Lz4Legacy => Box::new(io::Cursor::new(lz4_legacy(data)?)),
        })
    }
}

/// All of what is compressed in `data`.
pub(super) fn decompress(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    Compression::of(data).reader(data)?.read_to_end(&mut plain)?;
    Ok(plain)
}

/// Blocks with their length in front, after the magic. A kernel has the length of the whole behind the last one, where no
/// block fits any more.
fn lz4_legacy(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut rest = data.get(4..).unwrap_or_default();
    let mut plain = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        if behind.is_empty() {
            break;
        }
        let Some((compressed, behind)) = behind.split_at_checked(length) else {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the LZ4 data is truncated",
            ));
        };
        let size = lz4_flex::block::decompress_into(compressed, &mut block).map_err(io::Error::other)?;
        plain.extend_from_slice(block.get(..size).unwrap_or_default());
        rest = behind;
    }
    Ok(plain)
}
