//! What this process asks of the kernel for itself.

use std::io;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use socket2::{Domain, Socket, Type};

/// Nobody else of the same user may read this process's memory, and it leaves no core file: the key lives in here.
pub(super) fn close_to_others() -> io::Result<()> {
    prctl::set_dumpable(false)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(())
}

/// Whether sockets can be marked at all: better said at start than at each connection.
pub(super) fn try_mark(mark: u32) -> io::Result<()> {
    Socket::new(Domain::IPV4, Type::STREAM, None)?.set_mark(mark)
}
