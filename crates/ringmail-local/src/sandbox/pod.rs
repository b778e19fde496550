//! A pod: a network namespace with its addresses, and the containers in it.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use parking_lot::Mutex;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

use super::container::{Container, ContainerIo};
use super::daemon::MeshFacts;
use super::error::SandboxError;
use super::network::{
    LOOPBACK, Network, add_address, add_default_route, add_neighbour, add_route, index, quiet_ipv6, set_all,
    up,
};
use super::spec::ContainerSpec;

/// A pod that has its network. Clones are the same pod. [`Self::destroy`] ends it.
#[derive(Clone, Debug)]
pub struct PodSandbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    addresses: Vec<IpAddr>,
    link: String,
    netns: Arc<OwnedFd>,
    network: Network,
    facts: MeshFacts,
    containers: Mutex<Containers>,
}

#[derive(Debug, Default)]
struct Containers {
    running: Vec<Container>,
    /// None may be started any more.
    closed: bool,
}

/// The pod's own name of its link.
const INSIDE: &str = "eth0";

impl PodSandbox {
    /// Makes a pod's network namespace with these addresses, one for each family at most, and connects it.
    ///
    /// `name` is for messages, such as `ballot/web-7d4b9c-x2k8p`.
    pub async fn create(
        network: &Network,
        facts: &MeshFacts,
        name: &str,
        addresses: &[IpAddr],
    ) -> Result<Self, SandboxError> {
        let has_ipv6 = addresses.iter().any(IpAddr::is_ipv6);
        let (netns, handle) = make_namespace(name, has_ipv6).await?;
        let number = network.next_link();
        let link = format!("rm{number}");
        let (outer, inner) = (hardware_address(0, number), hardware_address(1, number));
        let failed = |error: rtnetlink::Error| SandboxError::network(name, "making a veth pair", error);
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(INSIDE.to_owned())
            .address(inner.to_vec())
            .append_extra_attribute(LinkAttribute::NetNsFd(netns.as_raw_fd()))
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(&link, INSIDE)
            .address(outer.to_vec())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .append_extra_attribute(LinkAttribute::IfAlias(name.chars().take(200).collect()))
            .build();
        network.handle().link().add(pair).execute().await.map_err(failed)?;

        // The link goes with the namespace, should anything fail from here on.
        let outside = index(network.handle(), name, &link).await?;
        let inside = index(&handle, name, INSIDE).await?;
        up(&handle, name, LOOPBACK).await?;
        up(&handle, name, inside).await?;
        up(network.handle(), name, outside).await?;
        for &address in addresses {
            let gateway = network.gateway(address).ok_or_else(|| {
                SandboxError::network(
                    name,
                    format!("address {address}"),
                    "the mesh has no gateway of its family",
                )
            })?;
            add_address(&handle, name, inside, address).await?;
            add_neighbour(&handle, name, inside, gateway, outer).await?;
            add_default_route(&handle, name, inside, gateway).await?;
            add_neighbour(network.handle(), name, outside, address, inner).await?;
            add_route(network.handle(), name, outside, address, gateway).await?;
        }
        Ok(Self(Arc::new(Inner {
            name: name.to_owned(),
            addresses: addresses.to_vec(),
            link,
            netns: Arc::new(netns),
            network: network.clone(),
            facts: facts.clone(),
            containers: Mutex::default(),
        })))
    }

    /// As given to [`Self::create`].
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// As given to [`Self::create`].
    pub fn addresses(&self) -> &[IpAddr] {
        &self.0.addresses
    }

    /// The device in the mesh's namespace over which all of the pod's packets go.
    pub fn link(&self) -> &str {
        &self.0.link
    }

    /// The pod's network namespace.
    pub fn netns_fd(&self) -> BorrowedFd<'_> {
        self.0.netns.as_fd()
    }

    /// Runs a function on a thread of its own inside the pod's network namespace.
    pub async fn run<T: Send + 'static>(
        &self,
        function: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let netns = self.0.netns.clone();
        let (tell, done) = oneshot::channel();
        thread::Builder::new().name("pod".to_owned()).spawn(move || {
            let result = setns(&*netns, CloneFlags::CLONE_NEWNET).map(|()| function());
            // Whoever asked may have stopped waiting.
            drop(tell.send(result));
        })?;
        Ok(done.await.map_err(|_| io::Error::other("the function panicked"))??)
    }

    /// Connects from inside the pod, for example to a program that listens on `127.0.0.1` there.
    pub async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = self
            .run(move || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() })
            .await??;
        socket.connect(address).await
    }

    /// Starts a container in the pod; returns when its program has been started.
    pub async fn start(&self, spec: ContainerSpec, io: ContainerIo) -> Result<Container, SandboxError> {
        let program = spec.argv.first().map_or("", |program| program.rsplit('/').next().unwrap_or_default());
        let of = format!("{}/{program}", self.0.name);
        let container = Container::start(of, self.0.netns.clone(), self.0.facts.clone(), spec, io).await?;
        let mut containers = self.0.containers.lock();
        if containers.closed {
            container.kill();
            return Err(SandboxError::ended("a container", &self.0.name, "the pod was destroyed meanwhile"));
        }
        containers.running.retain(|container| container.exit().is_none());
        containers.running.push(container.clone());
        Ok(container)
    }

    /// Ends what still runs in the pod, and takes its network away. Twice is no error.
    pub async fn destroy(&self) -> Result<(), SandboxError> {
        let running = {
            let mut containers = self.0.containers.lock();
            if containers.closed {
                return Ok(());
            }
            containers.closed = true;
            std::mem::take(&mut containers.running)
        };
        for container in &running {
            container.kill();
        }
        for container in &running {
            container.wait().await;
        }
        let handle = self.0.network.handle();
        let link = index(handle, &self.0.name, &self.0.link).await?;
        handle
            .link()
            .del(link)
            .execute()
            .await
            .map_err(|error| SandboxError::network(&self.0.name, "removing its link", error))
    }
}

/// A fresh namespace, kept by its descriptor alone, and netlink in there.
async fn make_namespace(of: &str, has_ipv6: bool) -> Result<(OwnedFd, Handle), SandboxError> {
    let runtime = tokio::runtime::Handle::current();
    let name = of.to_owned();
    let (tell, done) = oneshot::channel();
    let thread = thread::Builder::new().name("pod".to_owned()).spawn(move || {
        let _inside = runtime.enter();
        // Whoever asked may have stopped waiting.
        drop(tell.send(enter_new_namespace(&name, has_ipv6)));
    });
    let failed = |error: io::Error| SandboxError::network(of, "making its namespace", error);
    thread.map_err(failed)?;
    let (netns, connection, handle) =
        done.await.map_err(|_| failed(io::Error::other("the thread panicked")))??;
    tokio::spawn(connection);
    Ok((netns, handle))
}

type Connection = rtnetlink::proto::Connection<rtnetlink::packet_route::RouteNetlinkMessage>;

fn enter_new_namespace(of: &str, has_ipv6: bool) -> Result<(OwnedFd, Connection, Handle), SandboxError> {
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|errno| SandboxError::network(of, "making its namespace", errno))?;
    let netns = File::open("/proc/thread-self/ns/net")
        .map_err(|error| SandboxError::network(of, "keeping its namespace", error))?;
    let mut settings = vec![("net/ipv4/ip_unprivileged_port_start", "0")];
    settings.extend(quiet_ipv6(has_ipv6));
    set_all(of, &settings)?;
    // Everybody may ping; where only one id exists, the kernel takes no other range.
    if fs::write("/proc/sys/net/ipv4/ping_group_range", "0 65535").is_err() {
        drop(fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0"));
    }
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|error| SandboxError::network(of, "netlink", error))?;
    Ok((netns.into(), connection, handle))
}

/// Locally administered, different for each link and each of its ends.
fn hardware_address(end: u8, number: u32) -> [u8; 6] {
    let [a, b, c, d] = number.to_be_bytes();
    [0x02 | end << 4, 0x52, a, b, c, d]
}
