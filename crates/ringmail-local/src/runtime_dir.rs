//! Where meshes keep their control sockets: one directory a mesh, closed to other users.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::problem::Problem;

/// A mesh's directory. Its lock is held by the mesh as long as it lives, so that nothing is left to guess after a `kill -9`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeDir {
    name: String,
    path: PathBuf,
}

/// The lock of a mesh's directory: held as long as this open file, or a copy of it in another process, is open.
#[derive(Debug)]
pub struct Held(File);

impl From<Held> for OwnedFd {
    fn from(held: Held) -> Self {
        held.0.into()
    }
}

impl RuntimeDir {
    /// The directory of a mesh of this user.
    pub fn of(name: &str) -> Result<Self, Problem> {
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 40 || !name.chars().all(label) || name.starts_with('-') {
            return Err(Problem::new(
                "RM1560",
                format!("--name {name}"),
                "a mesh's name has lower-case letters, digits and `-`, at most 40",
                "choose another name",
            ));
        }
        Ok(Self { name: name.to_owned(), path: base().join(name) })
    }

    /// Every mesh of this user that has a directory, alive or not.
    pub fn all() -> Vec<Self> {
        let Ok(entries) = std::fs::read_dir(base()) else { return Vec::new() };
        let mut found: Vec<Self> = entries
            .flatten()
            .filter_map(|entry| Self::of(entry.file_name().to_str()?).ok())
            .filter(|dir| dir.path.is_dir())
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// The mesh's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// The daemon's own log.
    pub fn log(&self) -> PathBuf {
        self.path.join("daemon.log")
    }

    /// Makes the directory (0700, its parent too) and takes its lock; refused while another mesh of this name lives.
    pub fn take(&self) -> Result<Held, Problem> {
        let base = base();
        for directory in [base.as_path(), &self.path] {
            private(directory).map_err(|error| {
                Problem::new(
                    "RM1561",
                    directory.display().to_string(),
                    format!("cannot be used for the control socket: {error}"),
                    "set XDG_RUNTIME_DIR to a directory of yours, or remove what is in the way",
                )
            })?;
        }
        // Whoever looks whether this mesh lives holds the lock for a moment.
        let mut taken = self.lock(FlockOperation::NonBlockingLockExclusive);
        for _ in 0..20 {
            if !matches!(taken, Err(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            taken = self.lock(FlockOperation::NonBlockingLockExclusive);
        }
        taken.map_err(|error| match error {
            None => Problem::new(
                "RM1562",
                format!("mesh {}", self.name),
                "is running already",
                format!(
                    "`ringmail --mesh {0} apply` changes it, `ringmail --mesh {0} down` ends it, `--name` starts another",
                    self.name
                ),
            ),
            Some(error) => Problem::new("RM1561", self.path.display().to_string(), format!("cannot be locked: {error}"), ""),
        })
    }

    /// Whether a mesh lives here.
    pub fn is_alive(&self) -> bool {
        matches!(self.lock(FlockOperation::NonBlockingLockShared), Err(None))
    }

    /// Removes what a mesh left that is gone. Does nothing while it lives.
    pub fn clean(&self) {
        let Ok(held) = self.lock(FlockOperation::NonBlockingLockExclusive) else { return };
        // Each may be missing; a directory that holds something else stays.
        for file in [self.socket(), self.log(), self.lock_file()] {
            let _ = std::fs::remove_file(file);
        }
        let _ = std::fs::remove_dir(&self.path);
        drop(held);
    }

    /// The directory of all meshes of this user, which no container may see.
    pub fn base() -> PathBuf {
        base()
    }

    fn lock_file(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// `Err(None)` when another process holds it.
    fn lock(&self, how: FlockOperation) -> Result<Held, Option<io::Error>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
            .open(self.lock_file())
            .map_err(Some)?;
        match flock(&file, how) {
            Ok(()) => Ok(Held(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(None),
            Err(error) => Err(Some(error.into())),
        }
    }
}

/// `/run/ringmail` for root; `$XDG_RUNTIME_DIR/ringmail`, else `/tmp/ringmail-<uid>` for others.
fn base() -> PathBuf {
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        return PathBuf::from("/run/ringmail");
    }
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(dir) if dir.is_absolute() && dir.is_dir() => dir.join("ringmail"),
        _ => PathBuf::from(format!("/tmp/ringmail-{uid}")),
    }
}

/// Makes a directory of mode 0700, or makes sure that one is ours and closed: in `/tmp` another user may have been faster.
fn private(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let meta = std::fs::symlink_metadata(path)?;
    if !meta.is_dir() {
        return Err(io::Error::other("it is not a directory"));
    }
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::other(format!("it belongs to another user (uid {})", meta.uid())));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!("others may enter it (mode {:o})", meta.mode() & 0o7777)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        let base = std::env::temp_dir().join(format!("ringmail-test-{}", crate::ids::suffix()));
        DirBuilder::new().mode(0o755).create(&base).unwrap();
        assert!(private(&base).unwrap_err().to_string().contains("others may enter"));
        let inner = base.join("x");
        private(&inner).unwrap();
        private(&inner).unwrap();
        std::fs::remove_dir(&inner).unwrap();
        std::os::unix::fs::symlink("/", &inner).unwrap();
        assert!(private(&inner).unwrap_err().to_string().contains("not a directory"));
        std::fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for name in ["", "..", "a/b", "-x", "A"] {
            assert_eq!(RuntimeDir::of(name).unwrap_err().code, "RM1560", "{name}");
        }
        assert!(RuntimeDir::of("demo-2").is_ok());
    }
}
