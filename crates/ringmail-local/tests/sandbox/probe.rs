//! What containers try: system calls that no ordinary program makes for us.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::prctl;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rtnetlink::LinkUnspec;

pub(crate) fn run(words: &[&str]) -> ExitCode {
    let result = match words {
        ["mark", mark] => set_mark(mark),
        ["link-down"] => link_down(),
        ["redirect"] => redirect(),
        ["become", uid] => become_user(uid),
        ["dumpable"] => prctl::get_dumpable().map(|dumpable| println!("{dumpable}")).map_err(text),
        ["serve", port, word] => serve(port, word),
        ["ask", address] => ask(address),
        ["refuse-namespaces", name] => return crate::outside::without_namespaces(name),
        ["cover-proc"] => return crate::outside::with_covered_proc(),
        _ => Err(format!("unknown probe {words:?}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::from(3)
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn set_mark(mark: &str) -> Result<(), String> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).map_err(text)?;
    socket.set_mark(mark.parse().map_err(text)?).map_err(text)
}

fn link_down() -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(text)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(text)?;
        tokio::spawn(connection);
        handle.link().set(LinkUnspec::new_with_index(1).down().build()).execute().await.map_err(text)
    })
}

fn redirect() -> Result<(), String> {
    let plan = ringmail_redirect::Plan { exempt_mark: Some(0x2102), ..ringmail_redirect::Plan::default() };
    plan.apply().map_err(text)
}

/// As servers do that are started as root.
fn become_user(uid: &str) -> Result<(), String> {
    let id = uid.parse().map_err(text)?;
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    setgroups(&[gid]).map_err(|errno| format!("setgroups: {errno}"))?;
    setresgid(gid, gid, gid).map_err(|errno| format!("setgid: {errno}"))?;
    setresuid(uid, uid, uid).map_err(|errno| format!("setuid: {errno}"))?;
    if setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
        return Err("became root again".to_owned());
    }
    println!("{}", Uid::current());
    Ok(())
}

/// Tells each client who it is, until killed.
fn serve(port: &str, word: &str) -> Result<(), String> {
    let port: u16 = port.parse().map_err(text)?;
    for stream in TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).map_err(text)?.incoming() {
        let mut stream = stream.map_err(text)?;
        let peer = match stream.peer_addr().map_err(text)?.ip() {
            IpAddr::V6(ip) => ip.to_canonical(),
            ip @ IpAddr::V4(_) => ip,
        };
        // Who only looks whether somebody listens has gone already.
        drop(write!(stream, "{word} {peer}"));
    }
    Ok(())
}

fn ask(address: &str) -> Result<(), String> {
    let address: SocketAddr = address.parse().map_err(text)?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).map_err(text)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(text)?;
    println!("{answer}");
    Ok(())
}
