//! Where the pool's machines come from: booted, or, where the driver can copy machines, restored from a template that is
//! taken once and kept for the next start of the node.
//!
//! A template lies in a folder named by its key, so a changed image, agent, kernel or flag makes a new one. It appears
//! under that name when it is complete, and is thrown away when it does not restore; the machine is booted then.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::Mutex;

use super::{DriverKind, Machine, MachineDriver, MachineError, Templating};

/// Templates kept beside the one in use, for nodes with other settings.
const KEPT_TEMPLATES: usize = 3;

/// What names of unfinished templates begin with; the process that makes it comes next.
const PARTIAL: &str = ".partial-";

/// Starts machines.
#[derive(Debug)]
pub struct MachineSource {
    driver: Arc<dyn MachineDriver>,
    /// Where templates are kept; none are made without it.
    templates: Option<PathBuf>,
    /// Held while a template is made, so that it is made once.
    making: Mutex<Templates>,
}

/// Whether this driver's template is worth trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Templates {
    Possible,
    /// One could not be made, which is said once and not tried again.
    GivenUp,
}

impl MachineSource {
    /// Machines of this driver, with templates in that folder.
    #[must_use]
    pub fn new(driver: Arc<dyn MachineDriver>, templates: Option<PathBuf>) -> Self {
        Self {
            driver,
            templates,
            making: Mutex::new(Templates::Possible),
        }
    }

    /// Which driver's.
    #[must_use]
    pub fn kind(&self) -> DriverKind {
        self.driver.kind()
    }

    /// Starts a machine and returns once its agent waits for the link.
    ///
    /// # Errors
    /// [`MachineError`]
    pub async fn start(&self, id: &str) -> Result<Arc<dyn Machine>, MachineError> {
        if let (Some(templating), Some(folder)) = (self.driver.templating(), &self.templates)
            && let Some(template) = self.template(templating, folder, id).await
        {
            match templating.restore(&template, id).await {
                Ok(machine) => {
                    touch(&template);
                    return Ok(machine);
                }
                Err(error) => {
                    tracing::warn!(template = %template.display(), "template thrown away, it does not restore: {error}");
                    discard(&template);
                }
            }
        }
        self.driver.boot(id).await
    }

    /// The template, made now if there is none.
    async fn template(&self, templating: &dyn Templating, folder: &Path, id: &str) -> Option<PathBuf> {
        let template = folder.join(templating.template_key());
        if template.is_dir() {
            return Some(template);
        }
        let mut making = self.making.lock().await;
        if template.is_dir() {
            return Some(template);
        }
        if *making == Templates::GivenUp {
            return None;
        }
        match self.make(templating, folder, &template, id).await {
            Ok(()) => Some(template),
            Err(error) => {
                tracing::warn!("no template, so that every machine is booted: {error}");
                *making = Templates::GivenUp;
                None
            }
        }
    }

    async fn make(
        &self,
        templating: &dyn Templating,
        folder: &Path,
        template: &Path,
        id: &str,
    ) -> Result<(), MachineError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| MachineError::File { path, source }
        };
        create_private(folder).map_err(file(folder))?;
        sweep(folder);
        // Another node may be making the same one; whoever is second throws its own away.
        let partial = tempfile::Builder::new()
            .prefix(&format!("{PARTIAL}{}-", std::process::id()))
            .tempdir_in(folder)
            .map_err(file(folder))?;
        let machine = self.driver.boot(&format!("{id}-template")).await?;
        let booted = machine.start();
        templating.take(machine, partial.path()).await?;
        match fs::rename(partial.path(), template) {
            Ok(()) => _ = partial.keep(),
            Err(_) if template.is_dir() => {}
            Err(error) => return Err(file(template)(error)),
        }
        tracing::info!(template = %template.display(), boot = ?booted.elapsed, "template taken");
        prune(folder, template);
        Ok(())
    }
}

/// What is in a template is no secret, but nobody else may change it.
fn create_private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn touch(template: &Path) {
    let touched = fs::File::open(template).and_then(|folder| folder.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!(template = %template.display(), %error, "touch");
    }
}

fn discard(template: &Path) {
    if let Err(error) = fs::remove_dir_all(template) {
        tracing::warn!(template = %template.display(), %error, "template not removed");
    }
}

/// Removes the templates that have not been used for longest. A machine made from one keeps what it has of it.
fn prune(folder: &Path, in_use: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let mut others: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path != in_use && path.is_dir() && !is_partial(path))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .collect();
    others.sort_unstable_by(|a, b| b.cmp(a));
    for (_, path) in others.split_off(others.len().min(KEPT_TEMPLATES)) {
        discard(&path);
    }
}

/// Removes what was half made by nodes that are gone. It is large, and its name might be left for ever.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name
            .to_str()
            .and_then(|name| name.strip_prefix(PARTIAL)?.split_once('-'));
        let is_alive = |pid: u32| Path::new("/proc").join(pid.to_string()).exists();
        if maker.is_some_and(|(pid, _)| pid.parse().is_ok_and(|pid| !is_alive(pid))) {
            discard(&entry.path());
        }
    }
}

fn is_partial(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with('.'))
}
