//! `ringmail viz edges` and `ringmail viz tap`, also without the word `viz`.

mod edges;
mod tap;

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use ringmail_local::client::Mesh;
use ringmail_viz::client::VizClient;

use self::edges::EdgesArgs;
use self::tap::TapArgs;
use crate::Which;

/// `ringmail viz …`
#[derive(Debug, Args)]
pub(crate) struct VizArgs {
    /// The namespace that is asked about
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    namespace: Option<String>,
    #[command(subcommand)]
    command: VizCommand,
}

/// What can be asked.
#[derive(Debug, Subcommand)]
pub(crate) enum VizCommand {
    /// Which resources are connected, and whether by mutual TLS that both ends attest
    Edges(EdgesArgs),
    /// Requests (or connections) as they happen
    Tap(TapArgs),
}

/// `ringmail viz …`: `-n` may stand before or after the command's name.
pub(crate) fn run_args(args: VizArgs, which: &Which) -> anyhow::Result<ExitCode> {
    run(args.command, args.namespace, which)
}

/// One command. `namespace` is the one given before the command's name.
pub(crate) fn run(command: VizCommand, namespace: Option<String>, which: &Which) -> anyhow::Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting up")?;
    runtime.block_on(async {
        match command {
            VizCommand::Edges(args) => edges::run(args, namespace, which).await,
            VizCommand::Tap(args) => tap::run(args, namespace, which).await,
        }
    })
}

/// Viz of the mesh that is meant, on its pod's loopback address: who may reach that pod may ask.
async fn connect(which: &Which) -> anyhow::Result<VizClient> {
    let mesh = Mesh::find(which.mesh.as_deref())?;
    let stream = mesh.dial_pod(NAMESPACE, "deploy/viz", API_PORT).await;
    // As one text: its sources say the same again.
    let stream = stream.map_err(|error| anyhow::anyhow!("RM1704: viz cannot be reached: {error}"))?;
    Ok(VizClient::over(stream).await?)
}

/// What is wrong with the arguments, in the words of whoever found it.
fn usage(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(2)
}

/// Prints; `false` when nobody reads any more, which is no error.
fn print(text: &str) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

const NAMESPACE: &str = "ringmail";
const API_PORT: u16 = 8085;
const DEFAULT_NAMESPACE: &str = "default";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    #[derive(Debug, Subcommand)]
    enum Command {
        Viz(VizArgs),
        #[command(flatten)]
        AtRoot(VizCommand),
    }

    /// The namespace that `edges` or `tap` would ask about.
    fn namespace(line: &str) -> String {
        let (outer, command) = match Cli::try_parse_from(line.split(' ')).expect(line).command {
            Command::Viz(args) => (args.namespace, args.command),
            Command::AtRoot(command) => (None, command),
        };
        match command {
            VizCommand::Edges(args) => args.request(outer).expect(line).namespace,
            VizCommand::Tap(args) => args.request(outer).expect(line).namespace,
        }
    }

    #[test]
    fn the_namespace_stands_before_or_after_the_command_or_at_the_root() {
        for (line, expected) in [
            ("ringmail viz -n ringmail edges deploy", "ringmail"),
            ("ringmail viz edges deploy -n ringmail", "ringmail"),
            ("ringmail viz edges -n ringmail deploy", "ringmail"),
            ("ringmail edges deploy -n ballot", "ballot"),
            ("ringmail edges deploy", "default"),
            ("ringmail viz edges deploy -A", ""),
            ("ringmail viz -n ballot tap deploy/web", "ballot"),
            ("ringmail viz tap deploy web --namespace ballot", "ballot"),
            ("ringmail tap deploy/web -n ballot", "ballot"),
            ("ringmail tap ns/ballot", "default"),
        ] {
            assert_eq!(namespace(line), expected, "{line}");
        }
    }

    #[test]
    fn all_namespaces_and_one_exclude_each_other() {
        assert!(Cli::try_parse_from("ringmail edges deploy -A -n ballot".split(' ')).is_err());
        assert!(Cli::try_parse_from("ringmail edges deploy -A".split(' ')).is_ok());
    }
}
