//! `ringmail-proxy await`: holds back the application where the proxy is an ordinary container.
//!
//! It runs as the container's `postStart` hook, and Kubernetes starts the containers after it when it has ended.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;

/// What to wait for, and how long.
#[derive(Clone, Copy, Debug, Args)]
pub struct AwaitArgs {
    /// The proxy's admin port
    #[arg(long, value_name = "PORT", default_value_t = 4191)]
    pub port: u16,
    /// How many seconds to wait at most
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,
}

/// Waits until the proxy is ready. Exit code 1 and a line on stderr when it is not in time.
pub fn run(args: &AwaitArgs) -> ExitCode {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    match wait(address, Duration::from_secs(args.timeout)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(last) => {
            let seconds = args.timeout;
            crate::proxy::print_error(&format!(
                "RM1315: the proxy at {address} was not ready within {seconds} s: {last}; its log says what it waits for"
            ));
            ExitCode::FAILURE
        }
    }
}

/// Asks until the answer is yes; else gives the last answer.
fn wait(address: SocketAddr, patience: Duration) -> Result<(), String> {
    let start = Instant::now();
    loop {
        let last = match ask(address) {
            Ok(200) => return Ok(()),
            Ok(status) => format!("/ready answered {status}"),
            Err(error) => error.to_string(),
        };
        if start.elapsed() >= patience {
            return Err(last);
        }
        std::thread::sleep(INTERVAL);
    }
}

/// The status of `/ready`.
fn ask(address: SocketAddr) -> io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut head = Vec::new();
    stream.take(MAX_HEAD).read_to_end(&mut head)?;
    let status = head
        .strip_prefix(b"HTTP/1.1 ")
        .and_then(|rest| std::str::from_utf8(rest.get(..3)?).ok()?.parse().ok());
    status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP/1.1"))
}

const INTERVAL: Duration = Duration::from_millis(100);
const ANSWER: Duration = Duration::from_secs(1);
const MAX_HEAD: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers one connection after the other.
    fn server(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().expect("a connection");
                let mut request = [0; 256];
                let _read = stream.read(&mut request).expect("a request");
                stream.write_all(answer.as_bytes()).expect("written");
            }
        });
        address
    }

    #[test]
    fn it_waits_until_the_proxy_is_ready() {
        let address = server(&[
            "HTTP/1.1 503 Service Unavailable\r\n\r\n",
            "garbage",
            "HTTP/1.1 200 OK\r\n\r\nready\n",
        ]);
        assert_eq!(wait(address, Duration::from_secs(10)), Ok(()));
    }

    #[test]
    fn it_gives_up_with_the_last_answer() {
        let address = server(&["HTTP/1.1 503 Service Unavailable\r\n\r\n"]);
        assert_eq!(wait(address, Duration::ZERO), Err("/ready answered 503".to_owned()));
        let closed =
            TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
        assert!(wait(closed, Duration::ZERO).expect_err("refused").contains("refused"));
    }
}
