//! What the container's own mounts need, made in the upper layers before they are mounted.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::unistd::{AccessFlags, eaccess};

use super::Prepared;
use super::regions::{Kind, Layout, make_directory, write_file};
use crate::sandbox::error::SandboxError;
use crate::sandbox::spec::{ContainerSpec, Mount, Source};

/// Symbolic links in a row that the kernel follows.
const MOST_LINKS: u32 = 40;

/// Makes all of a specification's mount points and files; returns the mounts to make, parents first, and the working
/// directory.
pub(crate) fn prepare(
    layout: &mut Layout,
    spec: &ContainerSpec,
    program: Option<&Mount>,
) -> Result<(Vec<Prepared>, PathBuf), SandboxError> {
    prepare_etc(layout, spec)?;
    for path in &spec.writable {
        let path = target(path, "writable")?;
        let path =
            resolve(layout, &path, &[]).map_err(|error| SandboxError::mount(&path, "finding it", error))?;
        prepare_fresh(layout, &path)
            .map_err(|error| SandboxError::mount(&path, "making it writable", error))?;
    }

    let mut wanted = Vec::new();
    for (index, mount) in spec.mounts.iter().enumerate() {
        let field = format!("mounts[{index}].target");
        let path = target(&mount.target, &field)?;
        let resolved =
            resolve(layout, &path, &[]).map_err(|error| SandboxError::mount(&path, "finding it", error))?;
        wanted.push((resolved, &mount.source));
    }
    wanted.extend(program.map(|mount| (mount.target.clone(), &mount.source)));
    // A parent comes before what is inside it.
    wanted.sort_by_key(|(path, _)| path.components().count());
    let mut prepared: Vec<Prepared> = Vec::new();
    for (path, source) in wanted {
        let parents: Vec<PathBuf> = prepared.iter().map(|mount| mount.target.clone()).collect();
        if path == Path::new("/") || path.starts_with("/proc") || path.starts_with("/sys") {
            return Err(spec_error("mounts", format!("nothing can be mounted at `{}`", path.display())));
        }
        if parents.contains(&path) {
            return Err(spec_error("mounts", format!("two mounts at `{}`", path.display())));
        }
        let nested = parents.iter().any(|parent| path.starts_with(parent));
        if nested {
            prepared.push(Prepared { target: path, source: source.clone(), nested });
            continue;
        }
        let failed = |step: &str, error| SandboxError::mount(&path, step, error);
        match source {
            Source::File { content, mode } => {
                write(layout, &path, content, *mode).map_err(|error| failed("writing it", error))?;
            }
            Source::Tmpfs { .. } => {
                mount_point(layout, &path, true).map_err(|error| failed("making the mount point", error))?;
                prepared.push(Prepared { target: path, source: source.clone(), nested });
            }
            Source::Bind { path: from, .. } => {
                let metadata = fs::metadata(from)
                    .map_err(|error| failed(&format!("looking at its source `{}`", from.display()), error))?;
                mount_point(layout, &path, metadata.is_dir())
                    .map_err(|error| failed("making the mount point", error))?;
                prepared.push(Prepared { target: path, source: source.clone(), nested });
            }
        }
    }

    let cwd = target(&spec.cwd, "cwd")?;
    let targets: Vec<PathBuf> = prepared.iter().map(|mount| mount.target.clone()).collect();
    let cwd = resolve(layout, &cwd, &targets)
        .map_err(|error| spec_error("cwd", format!("`{}`: {error}", cwd.display())))?;
    let inside_mount = targets.iter().any(|target| cwd.starts_with(target));
    let is_special = cwd.starts_with("/proc") || cwd.starts_with("/sys");
    if !inside_mount && !is_special && !cwd.is_dir() {
        ensure_directory(layout, &cwd)
            .map_err(|error| spec_error("cwd", format!("making `{}`: {error}", cwd.display())))?;
    }
    Ok((prepared, cwd))
}

fn spec_error(field: &str, reason: String) -> SandboxError {
    SandboxError::Spec { field: field.to_owned(), reason }
}

/// An absolute path without `.` and `..`.
fn target(path: &Path, field: &str) -> Result<PathBuf, SandboxError> {
    if !path.is_absolute() {
        return Err(spec_error(field, format!("`{}` is not an absolute path", path.display())));
    }
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(clean)
}

/// What name resolution reads replaces the machine's, which is often a link into `/run`.
fn prepare_etc(layout: &mut Layout, spec: &ContainerSpec) -> Result<(), SandboxError> {
    let databases = spec.etc.nsswitch_conf.clone().unwrap_or_else(|| {
        with_hosts_from_files_and_dns(&fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default())
    });
    let hostname = format!("{}\n", spec.hostname);
    for (path, content) in [
        ("/etc/resolv.conf", &spec.etc.resolv_conf),
        ("/etc/hosts", &spec.etc.hosts),
        ("/etc/nsswitch.conf", &databases),
        ("/etc/hostname", &hostname),
    ] {
        let path = Path::new(path);
        write(layout, path, content.as_bytes(), 0o644)
            .map_err(|error| SandboxError::mount(path, "writing it", error))?;
    }
    Ok(())
}

fn with_hosts_from_files_and_dns(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("hosts:")).collect();
    lines.push("hosts: files dns");
    lines.join("\n") + "\n"
}

/// Follows the symbolic links in a path as they will be in the container. Nothing is followed inside directories that are
/// empty or of the container's own.
fn resolve(layout: &Layout, path: &Path, mounts: &[PathBuf]) -> io::Result<PathBuf> {
    let mut rest: VecDeque<OsString> = names(path);
    let mut resolved = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            resolved.pop();
            continue;
        }
        let next = resolved.join(&name);
        let own = ["/run", "/tmp", "/dev", "/proc", "/sys"].iter().any(|special| next.starts_with(special))
            || mounts.iter().any(|mount| next.starts_with(mount))
            || matches!(layout.region(&resolved).kind, Kind::Fresh { .. });
        let link = if own { None } else { fs::read_link(&next).ok() };
        let Some(link) = link else {
            resolved = next;
            continue;
        };
        links += 1;
        if links > MOST_LINKS {
            return Err(io::Error::other("too many symbolic links"));
        }
        if link.is_absolute() {
            resolved = PathBuf::from("/");
        }
        for name in names(&link).into_iter().rev() {
            rest.push_front(name);
        }
    }
    Ok(resolved)
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// Makes something to mount on, where the machine has nothing that serves.
fn mount_point(layout: &mut Layout, path: &Path, directory: bool) -> io::Result<()> {
    let region = layout.region(path);
    let shown = matches!(region.kind, Kind::Overlay { .. } | Kind::ReadOnly);
    if shown && fs::symlink_metadata(path).is_ok_and(|present| present.is_dir() == directory) {
        return Ok(());
    }
    if directory { ensure_directory(layout, path) } else { write(layout, path, b"", 0o644) }
}

/// Makes a file in the upper layer; a file or link of the machine under that name is hidden by it.
fn write(layout: &mut Layout, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        ensure_directory(layout, parent)?;
    }
    let staged = layout.staging(path)?;
    match fs::symlink_metadata(&staged) {
        Ok(present) if present.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        // In a directory that was made anew, the machine's file was copied.
        Ok(_) => fs::remove_file(&staged)?,
        Err(_) => {}
    }
    if path.is_dir() && matches!(layout.region(path).kind, Kind::Overlay { .. }) {
        return Err(io::Error::new(
            io::ErrorKind::IsADirectory,
            "a file cannot take the place of the machine's directory",
        ));
    }
    layout.replace(path);
    write_file(&staged, content, mode, layout.owner)
}

/// Makes a directory, and those above it, appear in the container: with the machine's mode where the machine has it.
fn ensure_directory(layout: &mut Layout, path: &Path) -> io::Result<()> {
    let mut above: Vec<&Path> = path.ancestors().collect();
    above.reverse();
    for (index, directory) in above.iter().enumerate() {
        let region = layout.region(directory);
        if region.at == *directory {
            continue;
        }
        let staged = layout.staging(directory)?;
        if staged.is_dir() {
            continue;
        }
        let overlaid = matches!(region.kind, Kind::Overlay { .. } | Kind::ReadOnly);
        match fs::symlink_metadata(directory).ok().filter(|present| overlaid && present.is_dir()) {
            None if overlaid && fs::symlink_metadata(directory).is_ok() => {
                return Err(io::Error::new(
                    io::ErrorKind::NotADirectory,
                    format!("`{}` is a file of the machine", directory.display()),
                ));
            }
            None => {
                make_directory(&staged, 0o755)?;
                std::os::unix::fs::chown(&staged, Some(layout.owner.0), Some(layout.owner.1))?;
            }
            Some(present) => {
                make_directory(&staged, present.mode() & 0o7777)?;
                layout.give_like(&staged, &present);
                let last = index + 1 == above.len();
                let readable = eaccess(*directory, AccessFlags::R_OK | AccessFlags::X_OK).is_ok();
                // The overlay could not look into the machine's directory either; in its place comes an empty one.
                if !last && !readable {
                    layout.add_fresh(directory, 0o755)?;
                }
            }
        }
    }
    Ok(())
}

fn prepare_fresh(layout: &mut Layout, path: &Path) -> io::Result<()> {
    ensure_directory(layout, path)?;
    layout.add_fresh(path, 0o755)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hosts_line_of_the_databases_changes() {
        let text = "passwd: files systemd\nhosts: files mdns4 myhostname\ngroup: files\n";
        assert_eq!(
            with_hosts_from_files_and_dns(text),
            "passwd: files systemd\ngroup: files\nhosts: files dns\n"
        );
    }

    #[test]
    fn a_target_is_absolute_and_cannot_climb_out() {
        assert_eq!(target(Path::new("/a/../../b/./c"), "x").unwrap(), Path::new("/b/c"));
        let error = target(Path::new("a/b"), "mounts[2].target").unwrap_err();
        assert_eq!(error.to_string(), "mounts[2].target: `a/b` is not an absolute path");
    }
}
