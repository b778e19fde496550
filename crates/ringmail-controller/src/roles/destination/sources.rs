//! `Sources.Watch`: whether a silent client has a proxy that would have started TLS.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use ringmail_api::sources::Source;
use ringmail_api::sources::source::Kind;
use ringmail_registry::Index;

use crate::fault::{Refusal, printable};
use crate::stream::View;

/// What one stream about a source has told.
#[derive(Debug)]
pub struct SourceKind {
    ip: IpAddr,
    port: u16,
    networks: Arc<[IpNet]>,
    told: Option<Source>,
}

impl SourceKind {
    /// Reads a request: the source's address and the port that it called.
    pub fn new(ip: &str, port: u32, networks: Arc<[IpNet]>) -> Result<Self, Refusal> {
        let address: IpAddr = ip.parse().map_err(|_| Refusal::Unknown(printable(ip)))?;
        let port = u16::try_from(port).ok().filter(|port| *port != 0).ok_or(Refusal::Port(port))?;
        Ok(Self { ip: address.to_canonical(), port, networks, told: None })
    }

    /// The source's address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    fn now(&self, index: &Index, synced: bool) -> Source {
        let source = |kind: Kind, identity: String| Source { kind: kind.into(), identity };
        if let Some(pod) = index.pod_by_ip(self.ip) {
            if !index.meshed(&pod) || pod.skip_outbound.contains(self.port) {
                return source(Kind::Unmeshed, String::new());
            }
            let identity = index.pod_identity(&pod).map(|id| id.to_string()).unwrap_or_default();
            return source(Kind::Meshed, identity);
        }
        let outside = !self.networks.iter().any(|network| network.contains(&self.ip));
        // Until the registry has been read, an address may be a pod's that it will tell of.
        if synced && (index.is_node(self.ip) || outside) {
            return source(Kind::Unmeshed, String::new());
        }
        source(Kind::Unknown, String::new())
    }
}

impl View for SourceKind {
    type Message = Source;

    fn update(&mut self, index: &Index, synced: bool) -> Result<Vec<Source>, Refusal> {
        let now = self.now(index, synced);
        if self.told.as_ref() == Some(&now) {
            return Ok(Vec::new());
        }
        self.told = Some(now.clone());
        Ok(vec![now])
    }
}
