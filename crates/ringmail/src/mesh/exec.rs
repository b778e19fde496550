//! `ringmail exec`.

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use ringmail_local::protocol::ExecRequest;

use super::find;
use crate::Which;

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The pod, or `deploy/NAME`, `sts/NAME`, `ds/NAME`, `job/NAME`, `svc/NAME`
    target: String,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// The container; without it, the first one
    #[arg(short, long)]
    container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the program a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(args: ExecArgs, which: &Which) -> anyhow::Result<ExitCode> {
    let mesh = find(which)?;
    let stdin = std::io::stdin();
    let terminal =
        if args.tty { Some(ringmail_local::terminal_size(stdin.as_fd()).unwrap_or((24, 80))) } else { None };
    let request = ExecRequest {
        namespace: args.namespace,
        target: args.target,
        container: args.container,
        command: args.command,
        stdin: args.stdin,
        terminal,
    };
    // Keys go to the program as they are, Ctrl-C too.
    let raw = if args.tty && args.stdin && stdin.is_terminal() { Some(Raw::enter()?) } else { None };
    let mut known = terminal;
    let resized = move || {
        let now = ringmail_local::terminal_size(std::io::stdin().as_fd());
        if now.is_some() && now != known {
            known = now;
            now
        } else {
            None
        }
    };
    let code =
        mesh.exec(request, tokio::io::stdin(), tokio::io::stdout(), tokio::io::stderr(), resized).await;
    drop(raw);
    let code = code?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// The terminal without any processing of its own, until dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> anyhow::Result<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd()).context("reading the terminal's settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw).context("changing the terminal's settings")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSANOW, &self.0);
    }
}
