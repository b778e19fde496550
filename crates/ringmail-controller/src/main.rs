//! The control plane's binary. Start at the library's front page.

use anyhow::Context as _;
use clap::Parser as _;
use ringmail_controller::settings::{Arguments, LogFormat};

// Long-lived streams with many small messages: jemalloc keeps the memory of a large mesh in bounds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let logs =
        tracing_subscriber::fmt().with_env_filter(arguments.log_filter()?).with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Plain => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    close_to_others().context("this process could not be closed to others of its user")?;
    let settings = arguments.settings()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(ringmail_controller::run(settings, ringmail_controller::terminated()))?;
    // What still blocks, such as a read of a directory, must not hold up the end.
    runtime.shutdown_background();
    Ok(())
}

/// Nobody else of the same user may read this process's memory, and it leaves no core file: the issuer's key lives in
/// here.
fn close_to_others() -> nix::Result<()> {
    nix::sys::prctl::set_dumpable(false)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)
}
