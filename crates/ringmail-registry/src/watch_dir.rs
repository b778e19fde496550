//! Learning that a directory changed: inotify, with a resync for file systems and mounts that do not tell.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe::Receiver;
use tokio::time::Instant;

/// Watches the entries of one directory, which may vanish and come back.
#[derive(Debug)]
pub struct WatchDir {
    path: PathBuf,
    resync: Duration,
    notifier: Option<Notifier>,
}

#[derive(Debug)]
struct Notifier {
    inotify: Inotify,
    /// The same descriptor for the runtime. It is no pipe, but it is read like one; what happened does not matter
    /// here, only that something did.
    events: Receiver,
}

impl WatchDir {
    /// Watches `path`; looks again after `resync` even if the kernel tells nothing.
    pub fn new(path: impl Into<PathBuf>, resync: Duration) -> Self {
        Self { path: path.into(), resync, notifier: None }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Watches from now on: what changes after this call makes the next [`changed`](Self::changed) return. Call it
    /// each time before reading the directory; a directory that was replaced is found again this way.
    pub fn arm(&mut self) {
        if self.notifier.is_none() {
            match Notifier::open() {
                Ok(notifier) => self.notifier = Some(notifier),
                Err(error) => {
                    let path = self.path.display();
                    tracing::warn!(
                        "inotify is not available ({error}): {path} is looked at every {:?}",
                        self.resync
                    );
                }
            }
        }
        if let Some(notifier) = &self.notifier {
            // Watching the same directory again changes nothing. A missing one is left to the resync.
            let _ = notifier.inotify.add_watch(&self.path, events());
        }
    }

    /// Waits until something changed, or for the resync.
    pub async fn changed(&mut self) {
        let deadline = Instant::now() + self.resync;
        let Some(notifier) = &self.notifier else {
            return tokio::time::sleep_until(deadline).await;
        };
        if let Ok(Err(error)) = tokio::time::timeout_at(deadline, notifier.wait()).await {
            tracing::warn!("inotify on {} failed ({error}): it is opened anew", self.path.display());
            self.notifier = None;
            tokio::time::sleep_until(deadline).await;
        }
    }
}

impl Notifier {
    fn open() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let events = Receiver::from_owned_fd_unchecked(inotify.as_fd().try_clone_to_owned()?)?;
        Ok(Self { inotify, events })
    }

    /// Waits for events and takes all that are there.
    async fn wait(&self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        let mut taken = false;
        loop {
            match self.events.try_read(&mut buffer) {
                Ok(_) => taken = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && taken => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.events.readable().await?,
                Err(error) => return Err(error),
            }
        }
    }
}

fn events() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR
}
