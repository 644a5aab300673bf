//! The shared libraries that a program needs, found as its loader would find them: by the paths in the program, then in
//! the folders that this machine's loader is set up for.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use elf::ElfBytes;
use elf::abi::{DT_NEEDED, DT_RPATH, DT_RUNPATH, ET_DYN, ET_EXEC, PT_INTERP};
use elf::endian::AnyEndian;

use super::ImageError;

/// Debian's name for the architecture, in the folders of its libraries.
#[cfg(target_arch = "aarch64")]
macro_rules! debian_folder {
    ($prefix:literal) => {
        concat!($prefix, "/aarch64-linux-gnu")
    };
}
#[cfg(not(target_arch = "aarch64"))]
macro_rules! debian_folder {
    ($prefix:literal) => {
        concat!($prefix, "/x86_64-linux-gnu")
    };
}

/// Where loaders look by themselves: Debian's and its relatives', then those of others.
const LIBRARY_FOLDERS: [&str; 6] = [
    debian_folder!("/lib"),
    debian_folder!("/usr/lib"),
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];

/// Further folders of this machine's loader.
const LOADER_CONFIGURATION: &str = "/etc/ld.so.conf";

/// How far files of the loader's configuration may include each other.
const INCLUDE_DEPTH: u32 = 4;

/// The C library tells which folder the loader looks in by itself.
const C_LIBRARY: &str = "libc.so.6";

/// What has to be beside a program for it to run: where each file goes, and where it is on this machine.
pub(super) type Companions = BTreeMap<PathBuf, PathBuf>;

/// What matters of an ELF file here.
#[derive(Debug)]
struct Object {
    machine: u16,
    executable: bool,
    interpreter: Option<PathBuf>,
    needed: Vec<String>,
    /// DT_RUNPATH, or DT_RPATH without one.
    search: Vec<String>,
}

/// Finds all shared libraries of a program and of its libraries, and the loader. A program that is linked statically has
/// none.
///
/// # Errors
/// [`ImageError::Program`] if it is no program, [`ImageError::Library`] if a library is not there.
pub(super) fn companions(program: &Path) -> Result<Companions, ImageError> {
    companions_within(program, &library_folders())
}

fn companions_within(program: &Path, folders: &[PathBuf]) -> Result<Companions, ImageError> {
    let object = Object::read(program)?.map_err(|reason| ImageError::program(program, reason))?;
    if !object.executable {
        return Err(ImageError::program(program, "it is an ELF file, but not a program"));
    }
    let machine = object.machine;
    let loader = object.interpreter.clone();
    let loader_name = loader
        .as_deref()
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned());

    let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut queue = VecDeque::from([(program.to_owned(), object)]);
    while let Some((path, object)) = queue.pop_front() {
        for name in &object.needed {
            if found.contains_key(name) || Some(name) == loader_name.as_ref() {
                continue;
            }
            let (file, library) = locate(name, &path, &object, machine, folders)?;
            found.insert(name.clone(), file.clone());
            queue.push_back((file, library));
        }
    }

    // Every library goes where the loader looks without being told, since the guest has no configuration for it.
    let home = found
        .get(C_LIBRARY)
        .and_then(|file| file.parent())
        .unwrap_or(Path::new("/lib"));
    let mut companions: Companions = found
        .iter()
        .map(|(name, file)| (home.join(name), file.clone()))
        .collect();
    if let Some(loader) = loader {
        companions.insert(loader.clone(), loader);
    }
    Ok(companions)
}

/// Finds one library.
fn locate(
    name: &str,
    needed_by: &Path,
    object: &Object,
    machine: u16,
    folders: &[PathBuf],
) -> Result<(PathBuf, Object), ImageError> {
    let origin = needed_by.parent().unwrap_or(Path::new("/"));
    let own = object.search.iter().map(|folder| {
        let origin = origin.to_string_lossy();
        PathBuf::from(folder.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin))
    });
    let searched: Vec<PathBuf> = own.chain(folders.iter().cloned()).collect();
    for folder in &searched {
        let file = folder.join(name);
        if !file.is_file() {
            continue;
        }
        // What is of another architecture, or a linker script, the loader passes over as well.
        if let Ok(library) = Object::read(&file)?
            && library.machine == machine
        {
            return Ok((file, library));
        }
    }
    let searched: Vec<String> = searched.iter().map(|folder| folder.display().to_string()).collect();
    Err(ImageError::Library {
        name: name.to_owned(),
        needed_by: needed_by.to_owned(),
        searched: searched.join(", "),
    })
}

impl Object {
    /// Reads a file. The inner error says why it is not one that could run here.
    fn read(path: &Path) -> Result<Result<Self, String>, ImageError> {
        let data = fs::read(path).map_err(|source| ImageError::file(path, source))?;
        if !data.starts_with(b"\x7fELF") {
            return Ok(Err("it is not an ELF file".to_owned()));
        }
        Ok(Self::parse(&data).map_err(|error| format!("it is damaged: {error}")))
    }

    fn parse(data: &[u8]) -> Result<Self, elf::ParseError> {
        let file = ElfBytes::<AnyEndian>::minimal_parse(data)?;
        let mut object = Self {
            machine: file.ehdr.e_machine,
            executable: matches!(file.ehdr.e_type, ET_EXEC | ET_DYN),
            interpreter: None,
            needed: Vec::new(),
            search: Vec::new(),
        };
        for segment in file.segments().into_iter().flatten() {
            if segment.p_type == PT_INTERP {
                let text = String::from_utf8_lossy(file.segment_data(&segment)?);
                object.interpreter = Some(PathBuf::from(text.trim_end_matches('\0')));
            }
        }
        let Some(dynamic) = file.dynamic()? else {
            return Ok(object);
        };
        let common = file.find_common_data()?;
        let Some(strings) = common.dynsyms_strs else {
            return Ok(object);
        };
        let mut old_search = Vec::new();
        for entry in dynamic {
            let text = || strings.get(usize::try_from(entry.d_val()).unwrap_or(usize::MAX));
            let folders = || text().map(|text| text.split(':').map(str::to_owned).collect());
            match entry.d_tag {
                DT_NEEDED => object.needed.push(text()?.to_owned()),
                DT_RUNPATH => object.search = folders()?,
                DT_RPATH => old_search = folders()?,
                _ => {}
            }
        }
        if object.search.is_empty() {
            object.search = old_search;
        }
        Ok(object)
    }
}

/// The folders that this machine's loader looks in.
fn library_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    read_configuration(Path::new(LOADER_CONFIGURATION), INCLUDE_DEPTH, &mut folders);
    folders.extend(LIBRARY_FOLDERS.map(PathBuf::from));
    let mut seen = std::collections::HashSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

/// Reads a file of the loader's configuration, which need not be there: a folder a line, and `include PATTERN`.
fn read_configuration(path: &Path, depth: u32, folders: &mut Vec<PathBuf>) {
    let Ok(text) = fs::read_to_string(path) else {
        return;
    };
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(pattern) = line.strip_prefix("include ") {
            if depth > 0 {
                for file in matching(Path::new(pattern.trim())) {
                    read_configuration(&file, depth - 1, folders);
                }
            }
        } else if line.starts_with('/') {
            folders.push(PathBuf::from(line));
        }
    }
}

/// The files that a pattern names, whose last part may hold one `*`; sorted.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some((before, after)) = name.split_once('*') else {
        return vec![pattern.to_owned()];
    };
    let entries = fs::read_dir(pattern.parent().unwrap_or(Path::new("/")))
        .into_iter()
        .flatten();
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
        })
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

    use super::*;

    /// This test is a program with shared libraries.
    fn program() -> PathBuf {
        std::env::current_exe().unwrap()
    }

    #[test]
    fn finds_the_c_library_and_the_loader_where_the_loader_wants_them() {
        let companions = companions(&program()).unwrap();
        let (place, file) = companions.iter().find(|(place, _)| place.ends_with(C_LIBRARY)).unwrap();
        assert!(file.is_file());
        let home = place.parent().unwrap();
        let loader = companions
            .keys()
            .find(|place| place.to_string_lossy().contains("/ld-linux"))
            .unwrap();
        assert!(loader.is_file());
        for place in companions.keys().filter(|place| *place != loader) {
            assert_eq!(place.parent(), Some(home), "{}", place.display());
        }
    }

    #[test]
    fn a_library_that_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("program");
        let mut bytes = fs::read(program()).unwrap();
        let name = b"libc.so.6\0";
        for at in 0..bytes.len() - name.len() {
            if bytes.get(at..at + name.len()) == Some(name) {
                *bytes.get_mut(at + 3).unwrap() = b'q';
            }
        }
        fs::write(&copy, bytes).unwrap();
        let error = companions(&copy).unwrap_err();
        assert!(
            matches!(&error, ImageError::Library { name, .. } if name == "libq.so.6"),
            "{error}"
        );
        let text = error.to_string();
        assert!(text.contains("libq.so.6, which ") && text.contains("/lib"), "{text}");
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text");
        fs::write(&file, "#!/bin/sh\n").unwrap();
        assert!(companions(&file).unwrap_err().to_string().contains("not an ELF file"));
        fs::write(&file, fs::read(program()).unwrap().get(..40).unwrap()).unwrap();
        assert!(companions(&file).unwrap_err().to_string().contains("damaged"));
        assert!(
            companions(&folder.path().join("none"))
                .unwrap_err()
                .to_string()
                .contains("No such file")
        );
    }

    #[test]
    fn the_loaders_configuration_may_include_others() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("conf.d");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("b.conf"), "# none\n/opt/b\n").unwrap();
        fs::write(inner.join("a.conf"), "/opt/a # a\n").unwrap();
        fs::write(inner.join("a.txt"), "/opt/no\n").unwrap();
        let main = folder.path().join("ld.so.conf");
        fs::write(&main, format!("include {}/*.conf\n/opt/c\n", inner.display())).unwrap();
        let mut folders = Vec::new();
        read_configuration(&main, 1, &mut folders);
        assert_eq!(folders, ["/opt/a", "/opt/b", "/opt/c"].map(PathBuf::from));
    }
}
