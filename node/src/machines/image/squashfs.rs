//! Writes a folder as a squashfs: what is in it and nothing of this machine. Everything belongs to root, has one time and
//! one of two modes, and stands in the order of its names.
//!
//! LZ4, because guests decompress what they read, some of them under emulation, and because the image is made anew
//! whenever the agent changes. Of a debug build's agent it makes 39 MB in 0.3 s, from which an emulated guest starts it in
//! 0.4 s; zstd makes 28 MB in 0.6 s and takes 0.6 s, gzip 27 MB in 5 s and 0.7 s.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use backhand::compression::{CompressionOptions, Compressor, Lz4};
use backhand::{BackhandError, FilesystemCompressor, FilesystemWriter, NodeHeader};

use super::ImageError;

const FOLDER_MODE: u16 = 0o755;
const PROGRAM_MODE: u16 = 0o755;
const FILE_MODE: u16 = 0o644;
const LINK_MODE: u16 = 0o777;
/// Of `/tmp`, where everybody may write.
const SHARED_MODE: u16 = 0o1777;

/// The version of LZ4's block format that squashfs has.
const LZ4_VERSION: u32 = 1;

/// Writes the tree. `time` is that of all entries, in seconds since 1970.
pub(super) fn write(tree: &Path, output: &Path, time: u32) -> Result<(), ImageError> {
    let failed = |error: BackhandError| ImageError::Rootfs(error.to_string());
    let mut writer = FilesystemWriter::default();
    let options = CompressionOptions::Lz4(Lz4 {
        version: LZ4_VERSION,
        flags: 0,
    });
    writer.set_compressor(FilesystemCompressor::new(Compressor::Lz4, Some(options)).map_err(failed)?);
    // It seeks back over what it wrote, for libraries of which there are no two alike.
    writer.set_no_duplicate_files(false);
    writer.set_time(time);
    writer.set_only_root_id();
    writer.set_root_mode(FOLDER_MODE);
    add(&mut writer, tree, Path::new(""), time)?;

    let mut file = BufWriter::new(File::create(output).map_err(|source| ImageError::file(output, source))?);
    writer.write(&mut file).map_err(failed)?;
    file.flush().map_err(|source| ImageError::file(output, source))
}

/// Adds what is in a folder.
fn add(writer: &mut FilesystemWriter<'_, '_, '_>, tree: &Path, folder: &Path, time: u32) -> Result<(), ImageError> {
    let failed = |error: BackhandError| ImageError::Rootfs(error.to_string());
    let place = tree.join(folder);
    let listed = fs::read_dir(&place).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut entries = listed.map_err(|source| ImageError::file(&place, source))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let source = entry.path();
        let path = folder.join(entry.file_name());
        let metadata = entry.metadata().map_err(|error| ImageError::file(&source, error))?;
        let header = |mode| NodeHeader::new(mode, 0, 0, time);
        let kind = metadata.file_type();
        if kind.is_dir() {
            let mode = if path == Path::new("tmp") {
                SHARED_MODE
            } else {
                FOLDER_MODE
            };
            writer.push_dir(&path, header(mode)).map_err(failed)?;
            add(writer, tree, &path, time)?;
        } else if kind.is_file() {
            let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions());
            let mode = if mode & 0o111 == 0 { FILE_MODE } else { PROGRAM_MODE };
            writer
                .push_file_from_path(&source, &path, header(mode))
                .map_err(failed)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&source).map_err(|error| ImageError::file(&source, error))?;
            writer.push_symlink(target, &path, header(LINK_MODE)).map_err(failed)?;
        } else {
            return Err(ImageError::Rootfs(format!(
                "/{} is neither a file nor a folder nor a symbolic link",
                path.display()
            )));
        }
    }
    Ok(())
}
