//! `ringmail up`, `down`, `apply`, `delete`, `ps`, `logs`, `exec` and `forward`: the local mesh.

mod exec;
mod forward;
mod objects;
mod ps;
mod up;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use ringmail_local::client::{ClientError, Mesh};
use ringmail_local::problem::{Problem, Problems};
use ringmail_local::protocol::LogRequest;

use crate::Which;
use crate::say::say;

#[derive(Debug, Subcommand)]
pub(crate) enum MeshCommand {
    /// Start a local mesh: manifests run as programs of this machine, and every connection between them is mutual TLS
    Up(Box<up::UpArgs>),
    /// End a local mesh; nothing of it is left
    Down(DownArgs),
    /// Bring a running mesh to what manifests say
    Apply(objects::ApplyArgs),
    /// Take objects out of a running mesh
    Delete(objects::DeleteArgs),
    /// List the pods
    Ps(ps::PsArgs),
    /// Print what a pod's containers wrote
    Logs(LogsArgs),
    /// Run a program in a pod's container
    Exec(exec::ExecArgs),
    /// Reach a pod's ports from this machine
    Forward(forward::ForwardArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// End every local mesh of this user
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The pod, or `deploy/NAME`, `sts/NAME`, `ds/NAME`, `job/NAME`, `svc/NAME`
    target: String,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// One container; without it, the application containers
    #[arg(short, long)]
    container: Option<String>,
    /// All containers, also init containers and sidecars
    #[arg(long, conflicts_with = "container")]
    all_containers: bool,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines of what there is
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// What the container wrote in its run before this one
    #[arg(short, long)]
    previous: bool,
}

pub(crate) fn run(command: MeshCommand, which: &Which) -> anyhow::Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting up")?;
    let result = runtime.block_on(async {
        match command {
            MeshCommand::Up(args) => up::run(*args, which).await,
            MeshCommand::Down(args) => down(&args, which).await,
            MeshCommand::Apply(args) => objects::apply(args, which).await,
            MeshCommand::Delete(args) => objects::delete(args, which).await,
            MeshCommand::Ps(args) => ps::run(&args, which).await,
            MeshCommand::Logs(args) => logs(args, which).await,
            MeshCommand::Exec(args) => exec::run(args, which).await,
            MeshCommand::Forward(args) => forward::run(args, which).await,
        }
    });
    // A thread may still wait for a key on the terminal.
    runtime.shutdown_background();
    match result {
        Ok(code) => Ok(code),
        Err(error) => match error.downcast::<ClientError>() {
            Ok(ClientError::Refused(problems)) => Ok(refused(&problems)),
            Ok(other) => Err(other.into()),
            Err(other) => Err(other),
        },
    }
}

/// The mesh that a command is about.
fn find(which: &Which) -> Result<Mesh, ClientError> {
    Mesh::find(which.mesh.as_deref())
}

/// Says what is wrong, one paragraph each.
fn refused(problems: &Problems) -> ExitCode {
    for problem in &problems.0 {
        eprintln!("error: {problem}");
    }
    ExitCode::from(1)
}

fn warn(warnings: &[Problem]) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}

async fn down(args: &DownArgs, which: &Which) -> anyhow::Result<ExitCode> {
    let meshes = if args.all { Mesh::all() } else { vec![find(which)?] };
    for mesh in meshes {
        mesh.down().await?;
        say!("mesh {} is down", mesh.name());
    }
    Ok(ExitCode::SUCCESS)
}

async fn logs(args: LogsArgs, which: &Which) -> anyhow::Result<ExitCode> {
    let mesh = find(which)?;
    let request = LogRequest {
        namespace: args.namespace,
        target: args.target,
        container: args.container,
        all_containers: args.all_containers,
        follow: args.follow,
        tail: args.tail,
        previous: args.previous,
    };
    let prefix = args.all_containers;
    let mut several = false;
    let mut first: Option<String> = None;
    mesh.logs(request, |_, container, line| {
        let known = first.get_or_insert_with(|| container.to_owned());
        several |= known != container;
        if prefix || several {
            print_line(&format!("[{container}] {line}"));
        } else {
            print_line(line);
        }
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a line; ends this program when nobody reads any more, as every filter does.
fn print_line(line: &str) {
    use std::io::Write as _;
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(0);
    }
}
