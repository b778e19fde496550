//! What the programs are told by their environment.

use std::fmt::Display;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context as _, anyhow};

/// Where to listen: port `PORT`, 8080 by default, on all addresses of both families.
pub fn listen_address() -> anyhow::Result<SocketAddr> {
    Ok((Ipv6Addr::UNSPECIFIED, number("PORT", 8080)?).into())
}

/// Listens there; on machines without IPv6, on all IPv4 addresses.
pub async fn listen() -> anyhow::Result<tokio::net::TcpListener> {
    let address = listen_address()?;
    let listener = match tokio::net::TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(_) => tokio::net::TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, address.port()))
            .await
            .with_context(|| format!("cannot listen on port {} (PORT)", address.port()))?,
    };
    Ok(listener)
}

/// `HOST:PORT` of another part of the application.
pub fn address(name: &str, default: &str) -> anyhow::Result<String> {
    let value = std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let port =
        value.rsplit_once(':').and_then(|(host, port)| port.parse::<u16>().ok().filter(|_| !host.is_empty()));
    port.map(|_| value.clone()).ok_or_else(|| anyhow!("{name} must be HOST:PORT, but is `{value}`"))
}

/// A number, or the default where it is not set.
pub fn number<T: FromStr<Err: Display>>(name: &str, default: T) -> anyhow::Result<T> {
    match std::env::var(name) {
        Ok(value) => value.parse().map_err(|error| anyhow!("{name} is `{value}`: {error}")),
        Err(_) => Ok(default),
    }
}

/// `BALLOT_NONCE`: a word that all messages carry in their bodies, for a capture to look for. Empty when it is not set.
pub fn nonce() -> String {
    std::env::var("BALLOT_NONCE").unwrap_or_default()
}
