//! The few kinds of mount that a root file system is made of.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::table::MountTable;
use crate::sandbox::ids::Ids;

/// An overlay of `lower` with the directories `upper` and `work` of `layer`, mounted at `target`.
pub(crate) fn mount_overlay(lower: &Path, layer: &Path, target: &Path) -> Result<(), Errno> {
    let mut options = OsString::from("lowerdir=");
    options.push(escape(lower));
    options.push(",upperdir=");
    options.push(escape(&layer.join("upper")));
    options.push(",workdir=");
    options.push(escape(&layer.join("work")));
    // Outside of the machine's own user namespace an overlay may not use the privileged attributes.
    if Ids::of_this_process().is_ok_and(|ids| !ids.is_initial()) {
        options.push(",userxattr");
    }
    mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_os_str()))
}

/// Colons separate lower directories and commas separate options.
fn escape(path: &Path) -> OsString {
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b':' | b',') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    OsString::from_vec(escaped)
}

/// Shows a file or directory, with what is mounted below it, at another path.
pub(crate) fn bind(source: &Path, target: &Path) -> Result<(), Errno> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
}

/// As [`bind`]; writes are refused, also to what is mounted below.
pub(crate) fn bind_read_only(source: &Path, target: &Path) -> io::Result<()> {
    bind(source, target)?;
    make_read_only(target)?;
    for entry in MountTable::read()?.below(target) {
        // One that cannot be looked at cannot be written to either.
        match make_read_only(&entry.at) {
            Ok(()) | Err(Errno::EACCES) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Makes one mount read-only; an ordinary user may not drop the other restrictions that a mount came with. How access
/// times are kept stays as it is when no flag for it is given.
pub(crate) fn make_read_only(target: &Path) -> Result<(), Errno> {
    let present = statvfs(target)?.flags();
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    for (restriction, flag) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ] {
        if present.contains(restriction) {
            flags |= flag;
        }
    }
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
}

/// An empty directory in memory.
pub(crate) fn mount_tmpfs(target: &Path, bytes: Option<u64>, mode: u32) -> Result<(), Errno> {
    let mode = format!("mode={mode:o}");
    let options = match bytes {
        // Zero would mean no limit.
        Some(bytes) => format!("{mode},size={}", bytes.max(4096)),
        None => mode,
    };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options.as_str()))
}

/// An empty file or directory to mount on, like `source`.
pub(crate) fn make_mount_point(target: &Path, directory: bool) -> io::Result<()> {
    if directory {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::OpenOptions::new().write(true).create_new(true).open(target) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_in_a_path_do_not_end_an_overlay_option() {
        assert_eq!(escape(Path::new("/a:b,c\\d")), OsString::from("/a\\:b\\,c\\\\d"));
    }
}
