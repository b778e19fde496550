//! `ringmail forward`.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use clap::Args;
use tokio::net::TcpListener;

use super::find;
use crate::Which;
use crate::say::say;

#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    /// The pod, or `deploy/NAME`, `sts/NAME`, `ds/NAME`, `job/NAME`, `svc/NAME`
    target: String,
    /// Ports: `8080` or `LOCAL:PORT`; local port 0 chooses one
    #[arg(required = true, value_name = "[LOCAL:]PORT")]
    ports: Vec<String>,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// The address of this machine to listen on
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
}

pub(super) async fn run(args: ForwardArgs, which: &Which) -> anyhow::Result<ExitCode> {
    let mesh = find(which)?;
    let mut forwards = Vec::new();
    for text in &args.ports {
        let (local, port) = ports(text)?;
        let address = SocketAddr::new(args.address, local);
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("RM1567: listening on {address}; choose another port: `{}:{port}`", local.wrapping_add(1))
        })?;
        say!("{} -> {} port {port}", listener.local_addr()?, args.target);
        let (mesh, namespace, target) = (mesh.clone(), args.namespace.clone(), args.target.clone());
        forwards.push(async move {
            let failed =
                |peer: SocketAddr, error: String| eprintln!("warning: connection from {peer}: {error}");
            mesh.forward(listener, &namespace, &target, port, failed).await
        });
    }
    tokio::select! {
        result = futures::future::try_join_all(forwards) => {
            result?;
            Ok(ExitCode::SUCCESS)
        }
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::SUCCESS),
    }
}

fn ports(text: &str) -> anyhow::Result<(u16, u16)> {
    let (local, port) = text.split_once(':').unwrap_or((text, text));
    let number = |text: &str| text.parse::<u16>().ok();
    match (number(local), number(port).filter(|port| *port != 0)) {
        (Some(local), Some(port)) => Ok((local, port)),
        _ => Err(anyhow!("`{text}` is not a port; write `8080` or `LOCAL:PORT`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_number_or_two() {
        assert_eq!(ports("80").unwrap(), (80, 80));
        assert_eq!(ports("0:80").unwrap(), (0, 80));
        for bad in ["", "x", "80:0", "1:2:3", "70000"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
