//! TCP sockets as the proxy wants them: marked, so that its own connections are never redirected to itself; kept
//! alive; without delay; and closed with a reset where a clean end would lie.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

/// Dials on behalf of the proxy.
#[derive(Clone, Debug, Default)]
pub struct Dialer {
    mark: Option<u32>,
    keepalive: Option<Duration>,
}

impl Dialer {
    /// `mark` is set on every socket (`SO_MARK`, which needs `CAP_NET_ADMIN` or `CAP_NET_RAW`), `keepalive` is the
    /// idle time before the first probe.
    pub fn new(mark: Option<u32>, keepalive: Option<Duration>) -> Self {
        Self { mark, keepalive }
    }

    /// Opens a connection, or says why not within `timeout`.
    pub async fn dial(&self, addr: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(mark) = self.mark {
            // Unmarked it would be redirected into this proxy again, so a failure here must not be passed over.
            SockRef::from(&socket).set_mark(mark)?;
        }
        let stream = match tokio::time::timeout(timeout, socket.connect(addr)).await {
            Ok(stream) => stream?,
            Err(_) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {timeout:?}")));
            }
        };
        tune(&stream, self.keepalive)?;
        Ok(stream)
    }
}

/// No delay, and keepalive where one is given.
pub fn tune(stream: &TcpStream, keepalive: Option<Duration>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if let Some(idle) = keepalive {
        SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(idle))?;
    }
    Ok(())
}

/// Makes the coming close of this socket a reset (RFC 9293 3.5.2: what is unsent is lost, the peer learns of it).
pub fn close_with_reset(stream: &TcpStream) {
    // A socket that is already gone needs no reset.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_reset_arrives_as_a_reset_and_a_plain_close_as_an_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("has one");
        for reset in [true, false] {
            let mut client = Dialer::default().dial(addr, Duration::from_secs(5)).await.expect("dials");
            let (server, _) = listener.accept().await.expect("accepts");
            if reset {
                close_with_reset(&server);
            }
            drop(server);
            let read = client.read(&mut [0; 8]).await;
            assert_eq!(
                read.map_err(|e| e.kind()),
                if reset { Err(io::ErrorKind::ConnectionReset) } else { Ok(0) }
            );
        }
    }

    #[tokio::test]
    async fn nobody_there_is_told_within_the_timeout() {
        // 192.0.2.0/24 is for documentation (RFC 5737): no answer, or none to be had from here.
        let began = std::time::Instant::now();
        let dialled = Dialer::default().dial(([192, 0, 2, 1], 9).into(), Duration::from_millis(50)).await;
        assert!(dialled.is_err());
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
