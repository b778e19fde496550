//! Proves on a live connection that the rules put the proxy in the path, before an application depends on it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockRef, Socket, Type};
use std::os::fd::AsFd;

use crate::error::{Absence, RedirectError};
use crate::plan::Plan;
use crate::routes;
use crate::ruleset::Family;

/// What [`validate`] proved, for each family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validation {
    /// With IPv4.
    pub ipv4: Result<Proof, Absence>,
    /// With IPv6.
    pub ipv6: Result<Proof, Absence>,
}

/// A connection to `target` came out at `proxy`, and the kernel remembers `target`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Where the connection was addressed.
    pub target: SocketAddr,
    /// Where it came out.
    pub proxy: SocketAddr,
}

/// Stands in for the proxy on its outbound port, connects to an address outside, and sees whether the connection comes
/// in, with its original destination. Takes `patience` for each family at most.
///
/// First the kernel's rules are compared with the plan, which also covers the inbound side, where nothing inside the
/// pod can make a connection. A family that the namespace does not have is no error as long as the other is proven.
pub fn validate(plan: &Plan, patience: Duration) -> Result<Validation, RedirectError> {
    plan.check()?;
    plan.compare()?;
    let uid = nix::unistd::geteuid().as_raw();
    if plan.exempt_uid == Some(uid) {
        return Err(RedirectError::Exempt { uid });
    }
    let ipv4 = prove(plan, Family::V4, patience)?;
    let ipv6 = if plan.ipv6 { prove(plan, Family::V6, patience)? } else { Err(Absence::NotPlanned) };
    match (ipv4, ipv6) {
        (Err(ipv4), Err(ipv6)) => Err(RedirectError::NothingToProve { ipv4, ipv6 }),
        (ipv4, ipv6) => Ok(Validation { ipv4, ipv6 }),
    }
}

fn prove(plan: &Plan, family: Family, patience: Duration) -> Result<Result<Proof, Absence>, RedirectError> {
    let failed = |attempt| move |source| RedirectError::Probe { family, attempt, source };
    let loopback = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let proxy = SocketAddr::new(loopback, plan.outbound_port);
    let listener = match TcpListener::bind(proxy) {
        Ok(listener) => listener,
        Err(error) => {
            return match error.raw_os_error() {
                Some(nix::libc::EADDRINUSE) => Err(RedirectError::PortTaken { address: proxy }),
                Some(nix::libc::EADDRNOTAVAIL | nix::libc::EAFNOSUPPORT) => Ok(Err(Absence::Off)),
                _ => Err(failed("listening on the proxy's port")(error)),
            };
        }
    };
    listener.set_nonblocking(true).map_err(failed("listening on the proxy's port"))?;
    let port = test_port(plan);
    for ip in test_addresses(plan, family) {
        let target = SocketAddr::new(ip, port);
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)
            .map_err(failed("making a socket"))?;
        socket.set_nonblocking(true).map_err(failed("making a socket"))?;
        match socket.connect(&target.into()) {
            Ok(()) => {}
            Err(error) => match error.raw_os_error() {
                Some(nix::libc::EINPROGRESS) => {}
                Some(nix::libc::ENETUNREACH | nix::libc::EADDRNOTAVAIL | nix::libc::EHOSTUNREACH) => continue,
                _ => return Err(failed("connecting")(error)),
            },
        }
        return await_arrival(&listener, &socket, target, proxy, patience).map(Ok);
    }
    Ok(Err(Absence::NoRoute))
}

/// Waits until our connection comes in at the listener.
fn await_arrival(
    listener: &TcpListener,
    socket: &Socket,
    target: SocketAddr,
    proxy: SocketAddr,
    patience: Duration,
) -> Result<Proof, RedirectError> {
    let start = Instant::now();
    let missed = |what: String| RedirectError::NotRedirected {
        target,
        proxy,
        waited_ms: start.elapsed().as_millis(),
        what,
    };
    loop {
        match listener.accept() {
            // Somebody else's connection may come first; it ends here, since there is no proxy yet.
            Ok((accepted, peer)) => {
                let own = socket.local_addr().ok().and_then(|address| address.as_socket());
                if own != Some(peer) {
                    continue;
                }
                let original = match target {
                    SocketAddr::V4(_) => SockRef::from(&accepted).original_dst_v4(),
                    SocketAddr::V6(_) => SockRef::from(&accepted).original_dst_v6(),
                };
                let seen = original.map(|address| address.as_socket());
                return match seen {
                    Ok(Some(seen)) if seen == target => Ok(Proof { target, proxy }),
                    Ok(Some(seen)) => {
                        Err(RedirectError::OriginalDestination { target, proxy, seen: seen.to_string() })
                    }
                    Ok(None) => {
                        Err(RedirectError::OriginalDestination { target, proxy, seen: "nothing".to_owned() })
                    }
                    Err(error) => {
                        Err(RedirectError::OriginalDestination { target, proxy, seen: error.to_string() })
                    }
                };
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(missed(format!("accepting failed: {error}"))),
        }
        if let Ok(Some(error)) = socket.take_error() {
            return Err(missed(format!("it failed: {error}")));
        }
        let left = patience.saturating_sub(start.elapsed());
        if left.is_zero() {
            let connected = socket.peer_addr().is_ok();
            let what = if connected { "it was accepted by something else" } else { "nothing answered" };
            return Err(missed(what.to_owned()));
        }
        // The shorter wait sees a failed connection, which the listener does not announce.
        let wait = left.min(Duration::from_millis(50));
        let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        let _either_ready_or_not = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout);
    }
}

/// Addresses of the documentation networks (RFC 5737, RFC 3849), which nobody has; then what the routes lead to.
fn test_addresses(plan: &Plan, family: Family) -> Vec<IpAddr> {
    let documentation: &[IpAddr] = match family {
        Family::V4 => &[
            IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
            IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
        ],
        Family::V6 => &[IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))],
    };
    let all = documentation.iter().copied().chain(routes::reachable(family));
    all.filter(|ip| !plan.skip_destinations.iter().any(|net| net.contains(ip))).collect()
}

/// A port that the plan redirects.
fn test_port(plan: &Plan) -> u16 {
    let skipped = |port: &u16| plan.skip_outbound.iter().any(|ports| ports.contains(*port));
    (1..=u16::MAX).rev().find(|port| !skipped(port)).unwrap_or(u16::MAX)
}
