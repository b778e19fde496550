//! Messages and file descriptors between this program's processes, over one socket pair.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One end. The other end's death is the end of the stream.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    socket: Arc<UnixStream>,
    /// Frames of several threads do not mix.
    sending: Arc<Mutex<()>>,
}

/// A frame starts with the length of its JSON and the number of descriptors that come along.
const HEADER: usize = 8;
const MOST_BYTES: usize = 64 << 20;
/// The kernel takes 253 at once.
const MOST_FDS: usize = 200;

impl Channel {
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self { socket: Arc::new(socket), sending: Arc::new(Mutex::new(())) }
    }

    /// Both ends; neither survives an exec.
    pub(crate) fn pair() -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self::new(ours), theirs))
    }

    pub(crate) fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let body = serde_json::to_vec(message)?;
        if body.len() > MOST_BYTES || fds.len() > MOST_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too large"));
        }
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
        header[4..].copy_from_slice(&(fds.len() as u32).to_le_bytes());
        let _guard = self.sending.lock();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        // In one call: several processes report on one socket, and the kernel keeps a short message together.
        let parts = [IoSlice::new(&header), IoSlice::new(&body)];
        let sent = rustix::net::sendmsg(&*self.socket, &parts, &mut control, SendFlags::NOSIGNAL)?;
        self.send_all(&header[sent.min(HEADER)..])?;
        self.send_all(&body[sent.saturating_sub(HEADER)..])
    }

    fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::net::send(&*self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// The next message; `None` at the end of the stream.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut header = [0; HEADER];
        let mut filled = 0;
        let mut fds = Vec::new();
        while filled < HEADER {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = match rustix::net::recvmsg(
                &*self.socket,
                &mut [IoSliceMut::new(&mut header[filled..])],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(message) => message.bytes,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::CONNRESET) if filled == 0 => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    fds.extend(received);
                }
            }
            if received == 0 {
                return if filled == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            filled += received;
        }
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let count = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        if length > MOST_BYTES || count != fds.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a frame of this program"));
        }
        let mut body = vec![0; length];
        (&*self.socket).read_exact(&mut body)?;
        Ok(Some((serde_json::from_slice(&body)?, fds)))
    }

    /// Tells the other end that nothing more comes, in either direction.
    pub(crate) fn shut(&self) {
        // The other end may be gone already.
        drop(self.socket.shutdown(std::net::Shutdown::Both));
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, Write};

    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_together_and_the_end_is_seen() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel::new(theirs);
        let mut file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.write_all(b"through").unwrap();
        file.rewind().unwrap();
        ours.send(&"first", &[]).unwrap();
        ours.send(&"second", &[file.as_fd()]).unwrap();
        drop(ours);

        assert_eq!(theirs.receive::<String>().unwrap().unwrap().0, "first");
        let (text, mut fds) = theirs.receive::<String>().unwrap().unwrap();
        let mut content = String::new();
        File::from(fds.remove(0)).read_to_string(&mut content).unwrap();
        assert_eq!((text.as_str(), content.as_str()), ("second", "through"));
        assert!(theirs.receive::<String>().unwrap().is_none());
    }

    #[test]
    fn a_message_larger_than_the_socket_buffer_arrives_whole() {
        let (ours, theirs) = Channel::pair().unwrap();
        let long = "x".repeat(3 << 20);
        let sent = long.clone();
        let sender = std::thread::spawn(move || ours.send(&sent, &[]));
        assert_eq!(Channel::new(theirs).receive::<String>().unwrap().unwrap().0, long);
        sender.join().unwrap().unwrap();
    }
}
