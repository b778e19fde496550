//! The command line of Ringmail.
//!
//! Start here: each group of commands is a module with its arguments and its `run`; [`mesh`] runs the local mesh,
//! [`viz`] asks what is secured, [`inject`] rewrites manifests.

mod inject;
mod mesh;
mod say;
mod viz;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "ringmail",
    version,
    about = "Mutual TLS for every connection between your services, and the proof of it"
)]
struct Cli {
    #[command(flatten)]
    which: Which,
    #[command(subcommand)]
    command: Command,
}

/// Which mesh a command is about.
#[derive(Clone, Debug, Args)]
struct Which {
    /// The local mesh of this name
    #[arg(long, global = true, env = "RINGMAIL_MESH", value_name = "NAME")]
    mesh: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Mesh(mesh::MeshCommand),
    /// What is secured, from what both ends of each connection saw
    Viz(viz::VizArgs),
    #[command(flatten)]
    VizAtRoot(viz::VizCommand),
    #[command(flatten)]
    Inject(inject::InjectCommand),
}

fn main() -> ExitCode {
    // Stages of the local mesh run in this program under another first argument, before any thread exists.
    if let Some(code) = ringmail_local::stage::run_if_asked() {
        return code;
    }
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Mesh(command) => mesh::run(command, &cli.which),
        Command::Viz(args) => viz::run_args(args, &cli.which),
        Command::VizAtRoot(command) => viz::run(command, None, &cli.which),
        Command::Inject(command) => inject::run(command),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}
