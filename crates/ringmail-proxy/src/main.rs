//! The proxy's program: without a subcommand the proxy, with `init` the init container, with `await` its hook.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ringmail_proxy::{await_ready, init, proxy};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The data plane of Ringmail. Without a subcommand it runs the proxy, configured by its environment
/// (`docs/proxy-configuration.md`).
#[derive(Debug, Parser)]
#[command(name = "ringmail-proxy", version, about)]
struct Program {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Redirects this network namespace's connections to the proxy, and proves it
    Init(init::InitArgs),
    /// Waits until the proxy of this pod is ready
    Await(await_ready::AwaitArgs),
}

fn main() -> ExitCode {
    match Program::parse().command {
        None => proxy::main(),
        Some(Command::Init(args)) => init::run(&args),
        Some(Command::Await(args)) => await_ready::run(&args),
    }
}
