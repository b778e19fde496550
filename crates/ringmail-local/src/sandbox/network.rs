//! The mesh's network: every pod is one hop away from the mesh's own namespace, which routes between them.
//!
//! There is no bridge. A pod has its address alone (`/32`, `/128`) and a default route to the gateway; the gateway's address
//! is on the loopback device of the mesh's namespace, and each pod's link leads there. Both ends know each other's hardware
//! address from the start, so no neighbour is ever asked for.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::error::SandboxError;

/// Addresses of the mesh's own namespace.
#[derive(Clone, Debug)]
pub struct NetworkSpec {
    /// What pods have as their gateway, and see probes come from: one for each address family.
    pub gateways: Vec<IpAddr>,
    /// Further addresses of the daemon, such as the name server's.
    pub addresses: Vec<IpAddr>,
}

/// The mesh's network namespace, once it routes. Clones are the same.
#[derive(Clone, Debug)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    handle: Handle,
    gateways: Vec<IpAddr>,
    links: AtomicU32,
}

pub(crate) const LOOPBACK: u32 = 1;
const MESH: &str = "the mesh";

impl Network {
    /// Turns the calling process's network namespace, which nothing else uses, into the mesh's router.
    pub async fn set_up(spec: NetworkSpec) -> Result<Self, SandboxError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|error| SandboxError::network(MESH, "netlink", error))?;
        tokio::spawn(connection);
        let has_ipv6 = spec.gateways.iter().any(IpAddr::is_ipv6);
        if has_ipv6 && !Path::new("/proc/sys/net/ipv6").exists() {
            return Err(SandboxError::network(MESH, "IPv6", "the kernel has it switched off"));
        }
        let mut settings = vec![
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ];
        settings.extend(quiet_ipv6(has_ipv6));
        if has_ipv6 {
            settings.push(("net/ipv6/conf/all/forwarding", "1"));
        }
        set_all(MESH, &settings)?;
        up(&handle, MESH, LOOPBACK).await?;
        let network =
            Self(Arc::new(Inner { handle, gateways: spec.gateways.clone(), links: AtomicU32::new(0) }));
        for address in spec.gateways.into_iter().chain(spec.addresses) {
            network.add_address(address).await?;
        }
        Ok(network)
    }

    /// Gives the daemon another address.
    pub async fn add_address(&self, address: IpAddr) -> Result<(), SandboxError> {
        add_address(&self.0.handle, MESH, LOOPBACK, address).await
    }

    /// Takes an address back; one that it does not have is an error.
    pub async fn remove_address(&self, address: IpAddr) -> Result<(), SandboxError> {
        let step = format!("removing address {address}");
        let failed = |error: rtnetlink::Error| SandboxError::network(MESH, step.as_str(), error);
        let mut present = self.0.handle.address().get().set_link_index_filter(LOOPBACK).execute();
        while let Some(message) = present.try_next().await.map_err(failed)? {
            let found = message
                .attributes
                .iter()
                .any(|attribute| matches!(attribute, AddressAttribute::Address(has) if *has == address));
            if found {
                return self.0.handle.address().del(message).execute().await.map_err(failed);
            }
        }
        Err(SandboxError::network(MESH, step, "the mesh does not have it"))
    }

    /// The gateway that speaks to `address`.
    pub(crate) fn gateway(&self, address: IpAddr) -> Option<IpAddr> {
        self.0.gateways.iter().copied().find(|gateway| gateway.is_ipv4() == address.is_ipv4())
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.0.handle
    }

    /// A number no other link of this mesh has had.
    pub(crate) fn next_link(&self) -> u32 {
        self.0.links.fetch_add(1, Ordering::Relaxed)
    }
}

/// Settings of the links to come: no duplicate detection, no router discovery; no IPv6 at all when it is not used.
pub(crate) fn quiet_ipv6(used: bool) -> Vec<(&'static str, &'static str)> {
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Vec::new();
    }
    if !used {
        return vec![("net/ipv6/conf/default/disable_ipv6", "1")];
    }
    vec![
        // Some machines switch it off for links to come.
        ("net/ipv6/conf/default/disable_ipv6", "0"),
        ("net/ipv6/conf/all/disable_ipv6", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/default/dad_transmits", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        ("net/ipv6/conf/default/router_solicitations", "0"),
    ]
}

/// Changes settings of the network namespace that the calling thread is in.
pub(crate) fn set_all(of: &str, settings: &[(&str, &str)]) -> Result<(), SandboxError> {
    for (name, value) in settings {
        fs::write(Path::new("/proc/sys").join(name), value).map_err(|error: io::Error| {
            SandboxError::network(of, format!("setting {}={value}", name.replace('/', ".")), error)
        })?;
    }
    Ok(())
}

pub(crate) async fn up(handle: &Handle, of: &str, link: u32) -> Result<(), SandboxError> {
    handle
        .link()
        .set(LinkUnspec::new_with_index(link).up().build())
        .execute()
        .await
        .map_err(|error| SandboxError::network(of, "switching a link on", error))
}

pub(crate) async fn index(handle: &Handle, of: &str, name: &str) -> Result<u32, SandboxError> {
    let failed = |reason: String| SandboxError::network(of, format!("finding link {name}"), reason);
    let found = handle.link().get().match_name(name.to_owned()).execute().try_next().await;
    match found {
        Ok(Some(link)) => Ok(link.header.index),
        Ok(None) => Err(failed("it is not there".to_owned())),
        Err(error) => Err(failed(error.to_string())),
    }
}

pub(crate) async fn add_address(
    handle: &Handle,
    of: &str,
    link: u32,
    address: IpAddr,
) -> Result<(), SandboxError> {
    let mut request = handle.address().add(link, address, prefix(address));
    if address.is_ipv6() {
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    request
        .execute()
        .await
        .map_err(|error| SandboxError::network(of, format!("adding address {address}"), error))
}

pub(crate) async fn add_neighbour(
    handle: &Handle,
    of: &str,
    link: u32,
    address: IpAddr,
    hardware: [u8; 6],
) -> Result<(), SandboxError> {
    handle
        .neighbours()
        .add(link, address)
        .link_layer_address(&hardware)
        .replace()
        .execute()
        .await
        .map_err(|error| SandboxError::network(of, format!("adding neighbour {address}"), error))
}

/// A route to one address over a link, with the sender's address to use.
pub(crate) async fn add_route(
    handle: &Handle,
    of: &str,
    link: u32,
    to: IpAddr,
    source: IpAddr,
) -> Result<(), SandboxError> {
    let failed = |reason: String| SandboxError::network(of, format!("adding a route to {to}"), reason);
    let message = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to, prefix(to))
        .and_then(|route| route.pref_source(source))
        .map_err(|error| failed(error.to_string()))?
        .output_interface(link)
        .build();
    handle.route().add(message).execute().await.map_err(|error| failed(error.to_string()))
}

/// The default route, over a gateway that is no neighbour by its address.
pub(crate) async fn add_default_route(
    handle: &Handle,
    of: &str,
    link: u32,
    gateway: IpAddr,
) -> Result<(), SandboxError> {
    let failed =
        |reason: String| SandboxError::network(of, format!("adding the default route via {gateway}"), reason);
    let everywhere: IpAddr =
        if gateway.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let message = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(everywhere, 0)
        .and_then(|route| route.gateway(gateway))
        .map_err(|error| failed(error.to_string()))?
        .output_interface(link)
        .onlink()
        .build();
    handle.route().add(message).execute().await.map_err(|error| failed(error.to_string()))
}

fn prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
