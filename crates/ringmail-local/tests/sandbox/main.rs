//! The sandbox in real namespaces: as root, as an ordinary user with a single id, and as one with id ranges.
//!
//! Run as root, every case runs in all three ways; run by an ordinary user, in that user's two. Nothing on the machine is
//! changed: the users exist only in a mount namespace of the test's own, and so do their entries in `/etc/subuid`.

mod files;
mod life;
mod network;
mod outside;
mod probe;
mod rights;
mod runner;
mod world;

use std::process::ExitCode;

use ringmail_local::stage;

fn main() -> ExitCode {
    if let Some(code) = stage::run_with(&[("case", world::daemon), ("hold", outside::hold)]) {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["probe", rest @ ..] => probe::run(rest),
        ["case", name, mode] => runner::run_case(name, mode),
        ["with-ranges", rest @ ..] => runner::with_ranges(rest),
        ["holder", mode] => outside::holder(mode),
        _ => runner::run_all(&words),
    }
}
