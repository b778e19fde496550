//! Where a redirected connection was meant to go.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::TcpStream;

/// Tells the original destination of an accepted connection.
#[derive(Clone)]
pub struct OriginalDst(Source);

#[derive(Clone)]
enum Source {
    Kernel,
    Told(Arc<Tell>),
}

type Tell = dyn Fn(&TcpStream) -> io::Result<SocketAddr> + Send + Sync;

impl OriginalDst {
    /// Asks the kernel's connection tracking (`SO_ORIGINAL_DST`, `IP6T_SO_ORIGINAL_DST`).
    pub fn kernel() -> Self {
        Self(Source::Kernel)
    }

    /// Always the same address: for a listener that stands for one destination.
    pub fn fixed(addr: SocketAddr) -> Self {
        Self::told(move |_| Ok(addr))
    }

    /// Whatever `tell` says.
    pub fn told(tell: impl Fn(&TcpStream) -> io::Result<SocketAddr> + Send + Sync + 'static) -> Self {
        Self(Source::Told(Arc::new(tell)))
    }

    /// The address that the client dialled; v4-mapped addresses as IPv4.
    pub fn get(&self, stream: &TcpStream) -> io::Result<SocketAddr> {
        match &self.0 {
            Source::Kernel => ask_kernel(stream),
            Source::Told(tell) => tell(stream).map(unmap),
        }
    }
}

impl fmt::Debug for OriginalDst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Source::Kernel => "OriginalDst::Kernel",
            Source::Told(_) => "OriginalDst::Told",
        })
    }
}

/// An IPv4 address that came in IPv6 clothes, as what it is.
pub fn unmap(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn ask_kernel(stream: &TcpStream) -> io::Result<SocketAddr> {
    // A dual-stack listener's IPv4 connections are tracked as IPv4, so the family follows the real address.
    if unmap(stream.local_addr()?).is_ipv4() {
        let raw = getsockopt(stream, sockopt::OriginalDst)?;
        let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
        Ok(SocketAddr::new(IpAddr::V4(ip), u16::from_be(raw.sin_port)))
    } else {
        let raw = getsockopt(stream, sockopt::Ip6tOriginalDst)?;
        let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
        Ok(unmap(SocketAddr::new(IpAddr::V6(ip), u16::from_be(raw.sin6_port))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_ipv4_and_a_real_ipv6_one_stays() {
        let unmapped = |text: &str| unmap(text.parse().expect("an address")).to_string();
        assert_eq!(unmapped("[::ffff:10.1.2.3]:80"), "10.1.2.3:80");
        assert_eq!(unmapped("[fd00::1]:80"), "[fd00::1]:80");
    }

    #[tokio::test]
    async fn a_connection_that_was_not_redirected_has_none() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("has one");
        let (_client, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
        let (stream, _) = accepted.expect("accepts");
        assert!(OriginalDst::kernel().get(&stream).is_err(), "connection tracking knows nothing of it");
        assert_eq!(OriginalDst::fixed(addr).get(&stream).expect("told"), addr);
    }
}
