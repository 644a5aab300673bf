//! `nex rootfs`: makes the guest image that virtual machines boot.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::args::{Output, ResourceDir};
use super::failure::Failure;
use super::output;
use crate::agents::find_agent_bin;
use crate::machines::image::{Addition, GuestImage, ImageError, Manifest, Recipe, find_init_bin};
use crate::machines::resources::Resources;

/// The variable that says which time files get in reproducible builds (reproducible-builds.org).
const TIME_VARIABLE: &str = "SOURCE_DATE_EPOCH";

const HELP: &str = "\
The image is a folder with a kernel, an initial RAM disk, a root file system and a manifest. Making it needs neither root
nor Docker, and the same ingredients always give the same bytes; files have the time SOURCE_DATE_EPOCH, else 1970. An image
that is there is replaced when the new one is complete, and only then.

The script runs on this machine, as you. NEX_ROOTFS names the folder that will be the guest's root; the script may change
what is in it, except for what is nex's own. In the image everything belongs to root and can be read by everybody.

Examples:
  nex rootfs                                              with the kernel that `nex preflight` installed
  nex rootfs --add ./ca.pem:/etc/ssl/ca.pem -o ./image
  nex rootfs --kernel linux-image-6.1.0-57-cloud-amd64.deb
  nex rootfs --kernel ./vmlinux                           a kernel that has everything built in";

/// Arguments of `nex rootfs`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Folder to write the image to [default: `image` in the resource folder]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// The program nex-agent [default: $NEX_AGENT_BIN, or the one beside this program]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// The program nex-init, which the guest starts first [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Kernel: a vmlinux, a bzImage, a Debian package (.deb) or the folder of an unpacked one [default: `kernel` in the
    /// resource folder]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Folder of the kernel's modules, such as /lib/modules/6.1.0; packages have their own
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// File or folder to add; may be given several times. DEST is an absolute path in the image
    #[arg(long = "add", value_name = "SOURCE:DEST")]
    additions: Vec<Addition>,
    /// Program to run on the root file system before it is packed
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Of the original: the image of a container to start from
    #[arg(long, hide = true)]
    image: Option<String>,
    /// Of the original: bytes of the file system
    #[arg(long, hide = true)]
    size: Option<String>,
    #[command(flatten)]
    resource_dir: ResourceDir,
    #[command(flatten)]
    output_form: Output,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Report<'a> {
    folder: &'a Path,
    id: &'a str,
    #[serde(flatten)]
    manifest: &'a Manifest,
}

/// Runs the command.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    if args.image.is_some() {
        return Err(Failure::usage(
            "`--image` has no meaning here: the root file system holds nex-agent and its libraries, and starts from no \
             container; `--add` and `--script` add to it",
        ));
    }
    if args.size.is_some() {
        return Err(Failure::usage(
            "`--size` has no meaning here: the root file system is read-only and as large as what is in it",
        ));
    }
    let json = args.output_form.json;
    let started = Instant::now();
    let (folder, image) = tokio::task::spawn_blocking(move || build(args))
        .await
        .map_err(Failure::failed)??;
    let manifest = image.manifest();
    if json {
        return output::json(&Report {
            folder: &folder,
            id: image.id(),
            manifest,
        });
    }
    let bytes: u64 = manifest.files.values().map(|file| file.bytes).sum();
    output::line(format_args!(
        "✅ Guest image {} made in {:.1} s: kernel {}, {} modules, {} MiB",
        folder.display(),
        started.elapsed().as_secs_f64(),
        manifest.kernel_version,
        manifest.modules.len(),
        bytes >> 20,
    ))
}

fn build(args: Args) -> Result<(PathBuf, GuestImage), Failure> {
    let resources = args.resource_dir.resources()?;
    let mut recipe = recipe(&resources, args.agent, args.init)?;
    if let Some(kernel) = args.kernel {
        recipe.kernel = kernel;
    }
    recipe.modules = args.modules;
    recipe.additions = args.additions;
    recipe.script = args.script;
    let folder = args.output.unwrap_or_else(|| resources.image());
    let image = recipe.build(&folder)?;
    Ok((folder, image))
}

/// The image that nodes boot if nobody asks for another.
pub(super) fn recipe(resources: &Resources, agent: Option<PathBuf>, init: Option<PathBuf>) -> Result<Recipe, Failure> {
    Ok(Recipe {
        agent: agent.map_or_else(find_agent_bin, Ok).map_err(Failure::usage)?,
        init: init.map_or_else(find_init_bin, Ok)?,
        kernel: resources.kernel(),
        modules: None,
        additions: Vec::new(),
        script: None,
        time: time(std::env::var(TIME_VARIABLE).ok().as_deref())?,
    })
}

/// The time of all files.
fn time(variable: Option<&str>) -> Result<u32, Failure> {
    match variable.unwrap_or_default() {
        "" => Ok(0),
        text => text.parse().map_err(|_| {
            Failure::usage(format_args!(
                "{TIME_VARIABLE} is `{text}`, expected seconds since 1970, up to {}",
                u32::MAX
            ))
        }),
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::File { .. } | ImageError::Broken { .. } | ImageError::Script { .. } | ImageError::Rootfs(_) => {
                Self::failed(error)
            }
            _ => Self::usage(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_files_is_a_number_of_seconds() {
        assert!(matches!(time(None), Ok(0)));
        assert!(matches!(time(Some("")), Ok(0)));
        assert!(matches!(time(Some("1700000000")), Ok(1_700_000_000)));
        for text in ["yesterday", "-1", "4294967296"] {
            let message = time(Some(text)).err().and_then(|failure| failure.message);
            assert!(message.is_some_and(|message| message.contains("SOURCE_DATE_EPOCH") && message.contains(text)));
        }
    }
}
