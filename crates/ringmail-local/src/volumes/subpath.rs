//! A part of a volume, mounted so that nothing outside of the volume can be reached.
//!
//! A program that may write to a volume can put symbolic links there, and change them at any time. So the path is walked by the
//! kernel, beneath the volume only, and what is mounted is what was opened, whatever the path means later.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path};

use nix::mount::{MsFlags, mount};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

/// Mounts `sub_path` of the volume at `target`, which is made. A part that is missing becomes a directory, unless the volume is
/// read-only.
pub(super) fn bind(volume: &Path, sub_path: &str, target: &Path, read_only: bool) -> io::Result<()> {
    let path = Path::new(sub_path);
    if path.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::other(format!("subPath `{sub_path}` must stay within the volume")));
    }
    let root = openat2(
        CWD,
        volume,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::empty(),
    )?;
    let part = match open_beneath(&root, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !read_only => {
            make_directories(&root, path, fs::metadata(volume)?.permissions().mode())?;
            open_beneath(&root, path)?
        }
        other => other?,
    };
    let source = format!("/proc/self/fd/{}", part.as_raw_fd());
    if fs::metadata(&source)?.is_dir() {
        fs::create_dir_all(target)?;
    } else if !target.exists() {
        fs::File::create(target)?;
    }
    mount(Some(source.as_str()), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

fn open_beneath(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(openat2(root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)?)
}

/// Makes each missing part in the directory that was opened before, never through a link, and as open as the volume is.
fn make_directories(root: &OwnedFd, path: &Path, mode: u32) -> io::Result<()> {
    let mut at = root.try_clone()?;
    for part in path.components().filter(|c| matches!(c, Component::Normal(_))) {
        let name = Path::new(part.as_os_str());
        let made = match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(rustix::io::Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        at = openat2(
            &at,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )?;
        if made {
            rustix::fs::fchmod(&at, Mode::from_raw_mode(mode & 0o7777))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_out_of_the_volume_is_not_followed() {
        let volume = std::env::temp_dir().join(format!("ringmail-subpath-{}", crate::ids::suffix()));
        fs::create_dir_all(volume.join("inside/deep")).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("inside", volume.join("in")).unwrap();
        let root =
            openat2(CWD, &volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty())
                .unwrap();
        assert!(open_beneath(&root, Path::new("out/passwd")).is_err());
        assert!(open_beneath(&root, Path::new("in/deep")).is_ok());
        assert!(make_directories(&root, Path::new("out/x"), 0o777).is_err());
        make_directories(&root, Path::new("inside/new/dir"), 0o2777).unwrap();
        assert_eq!(
            fs::metadata(volume.join("inside/new/dir")).unwrap().permissions().mode() & 0o7777,
            0o2777
        );
        assert!(bind(&volume, "../x", Path::new("/nowhere"), false).is_err());
        fs::remove_dir_all(&volume).unwrap();
    }
}
