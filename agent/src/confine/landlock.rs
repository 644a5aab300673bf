//! Landlock: the kernel opens for this process what it is made of, a few devices, and what `/proc` says of the process
//! itself; it lets it bind and connect no TCP port, reach no abstract socket, and signal nobody outside. What a kernel
//! does not know of yet, it does not restrict.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::{ConfineError, Layer, files};

/// The newest version whose rights this program knows.
const KNOWN: ABI = ABI::V6;

/// The version of the kernel's Landlock, or why there is none.
#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
pub(super) fn version() -> Result<u32, String> {
    /// `LANDLOCK_CREATE_RULESET_VERSION`
    const VERSION: libc::c_uint = 1;
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call reads nothing and makes nothing.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0_usize, VERSION) };
    if let Ok(version) = u32::try_from(version) {
        return Ok(version);
    }
    let error = std::io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "the kernel has it, but it is not among the enabled modules (`lsm=`)".to_owned(),
        Some(libc::ENOSYS) => "the kernel does not have it".to_owned(),
        _ => error.to_string(),
    })
}

/// Restricts the calling thread and those it starts.
pub(super) fn apply() -> Result<(), ConfineError> {
    let status = restrict().map_err(|source| ConfineError::step(Layer::Landlock, "restrict files", source))?;
    if status == RulesetStatus::NotEnforced {
        let reason = version()
            .err()
            .unwrap_or_else(|| "the kernel did not enforce it".to_owned());
        return Err(ConfineError::Unavailable {
            layer: Layer::Landlock,
            reason,
        });
    }
    tracing::debug!(?status, abi = ?version(), "landlock");
    Ok(())
}

fn restrict() -> Result<RulesetStatus, std::io::Error> {
    let other = std::io::Error::other;
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(KNOWN)))
        .and_then(|rules| rules.scope(Scope::from_all(KNOWN)))
        .and_then(Ruleset::create)
        .map_err(other)?;
    let mut rules = allow(rules, &files::binary()?, AccessFs::ReadFile | AccessFs::Execute)?;
    for library in files::libraries() {
        rules = allow(rules, &library, AccessFs::ReadFile | AccessFs::Execute)?;
    }
    for device in files::DEVICES {
        let access = if device == c"/dev/null" {
            AccessFs::ReadFile | AccessFs::WriteFile
        } else {
            AccessFs::ReadFile.into()
        };
        rules = allow(rules, device, access)?;
    }
    rules = allow_own_proc(rules)?;
    Ok(rules.restrict_self().map_err(other)?.ruleset)
}

/// Allows access to a file, if it is there.
fn allow(
    rules: RulesetCreated,
    path: &std::ffi::CStr,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, std::io::Error> {
    let path: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(path.to_bytes());
    match PathFd::new(path) {
        Ok(file) => rules
            .add_rule(PathBeneath::new(file, access))
            .map_err(std::io::Error::other),
        Err(_) if !std::path::Path::new(path).exists() => Ok(rules),
        Err(error) => Err(std::io::Error::other(error)),
    }
}

/// Allows to read what `/proc` says of this process.
fn allow_own_proc(rules: RulesetCreated) -> Result<RulesetCreated, std::io::Error> {
    let Ok(own) = PathFd::new("/proc/self") else {
        return Ok(rules);
    };
    let rules = rules
        .add_rule(PathBeneath::new(&own, AccessFs::ReadFile | AccessFs::ReadDir))
        .map_err(std::io::Error::other)?;
    // The rule is about the folder as the kernel has it in memory now. Without this descriptor it might forget it, and
    // make another when asked again.
    std::mem::forget(own);
    Ok(rules)
}
