use super::args::Global;
use super::failure::Failure;
#[derive(Debug, clap::Args)]
pub(super) struct Args {}
pub(super) async fn run(_global: &Global, _args: Args) -> Result<(), Failure> {
    Ok(())
}
