//! The files a container sees: the machine's, through overlays whose upper layers vanish, and the mounts of its own.
//!
//! A root is made in three steps. [`regions`] says, for each directory of the machine, how it is shown. Then everything
//! that must exist for the container's own mounts is made in the upper layers ([`prepare`]): once an overlay is mounted, an
//! ordinary user cannot make anything in directories that belong to the machine's root. At last everything is mounted,
//! parents first, and the old root is left behind ([`enter`]).

mod mounting;
mod prepare;
mod regions;
mod special;
mod table;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use self::mounting::{bind, bind_read_only, make_mount_point, make_read_only};
pub(crate) use self::mounting::{mount_overlay, mount_tmpfs};
use self::regions::{Kind, Layout};
use self::table::MountTable;
use super::daemon::MeshFacts;
use super::error::SandboxError;
use super::mesh_init::{PROGRAMS, SCRATCH};
use super::refusal::Machine;
use super::spec::{ContainerSpec, Mount, Source};

/// A root file system that stands and has not been entered.
pub(crate) struct Root {
    path: PathBuf,
    /// Where the program is, inside; symbolic links of its directory are followed.
    pub(crate) cwd: PathBuf,
    /// What the user might want to know.
    pub(crate) notes: Vec<String>,
}

/// Whether something is mounted below a directory.
pub(crate) fn has_mounts_below(directory: &Path) -> io::Result<bool> {
    Ok(MountTable::read()?.below(directory).next().is_some())
}

/// Makes the root of a container. The caller is alone in a new mount namespace and a new pid namespace, with all rights in
/// the user namespace of the mesh. `owner` has the files that are made for the container.
pub(crate) fn build(
    spec: &ContainerSpec,
    facts: &MeshFacts,
    owner: (u32, u32),
) -> Result<Root, SandboxError> {
    let broken = |step: &str, error: io::Error| SandboxError::mount(Path::new("/"), step, error);
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|errno| broken("making mounts private", errno.into()))?;
    let table = MountTable::read().map_err(|error| broken("reading the mounts", error))?;
    let scratch = facts.state_dir.join(SCRATCH);
    mount_tmpfs(&scratch, spec.scratch_bytes, 0o700)
        .map_err(|errno| broken("mounting a tmpfs", errno.into()))?;
    let root = scratch.join("root");
    fs::create_dir(&root)
        .and_then(|()| fs::set_permissions(&root, fs::Permissions::from_mode(0o755)))
        .map_err(|error| broken("making a directory", error))?;
    bind(&root, &root).map_err(|errno| broken("binding the root", errno.into()))?;
    special::mount_proc_and_sys(&root)?;
    special::make_dev(&root, &facts.ids)?;

    let mut layout = Layout::of_machine(facts, table, scratch, root, owner)
        .map_err(|error| broken("laying out the machine's directories", error))?;
    let program = program_mount(spec, facts)?;
    let (mounts, cwd) = prepare::prepare(&mut layout, spec, program.as_ref())?;
    mount_regions(&mut layout)?;
    mount_submounts(&mut layout, facts);
    hide(&layout, facts)?;
    if spec.read_only_root {
        make_root_read_only(&layout)?;
    }
    for mount in &mounts {
        mount_one(&layout, mount)?;
    }
    Ok(Root { path: layout.root, cwd, notes: layout.notes })
}

/// Shows the machine's directories, parents first.
fn mount_regions(layout: &mut Layout) -> Result<(), SandboxError> {
    let mut notes = Vec::new();
    for region in layout.in_order() {
        let target = layout.inside(&region.at);
        match &region.kind {
            Kind::Plain => {}
            Kind::Fresh { directory } => bind(directory, &target)
                .map_err(|errno| SandboxError::mount(&region.at, "binding a fresh directory", errno))?,
            Kind::ReadOnly => {
                make_mount_point(&target, true)
                    .and_then(|()| bind_read_only(&region.at, &target))
                    .map_err(|error| SandboxError::mount(&region.at, "binding it read-only", error))?;
            }
            Kind::Overlay { layer, used, read_only } => {
                match mount_overlay(&region.at, layer, &target) {
                    Ok(()) => {}
                    Err(errno) if *used => return Err(Machine::this().overlay(&region.at, errno)),
                    Err(errno) => {
                        notes.push(format!(
                            "{}: `{}` is read-only instead",
                            Machine::this().overlay(&region.at, errno),
                            region.at.display()
                        ));
                        bind_read_only(&region.at, &target).map_err(|error| {
                            SandboxError::mount(&region.at, "binding it read-only", error)
                        })?;
                    }
                }
                if *read_only {
                    make_read_only(&target)
                        .map_err(|errno| SandboxError::mount(&region.at, "making it read-only", errno))?;
                }
            }
        }
    }
    for file in layout.bound_files() {
        bind_read_only(file, &layout.inside(file))
            .map_err(|error| SandboxError::mount(file, "binding it read-only", error))?;
    }
    layout.notes.extend(notes);
    Ok(())
}

/// An overlay shows the directory below a mount point; what the machine has mounted there comes on top, read-only.
fn mount_submounts(layout: &mut Layout, facts: &MeshFacts) {
    let mut done: Vec<PathBuf> = Vec::new();
    let mut notes = Vec::new();
    for entry in layout.table.shown() {
        let at = &entry.at;
        let hidden = at.starts_with(&facts.state_dir) || facts.hide.iter().any(|path| at.starts_with(path));
        if hidden
            || layout.is_replaced(at)
            || !layout.shows_submounts(at)
            || done.iter().any(|parent| at.starts_with(parent))
        {
            continue;
        }
        let target = layout.inside(at);
        // A directory that this user may not look into is as good as absent.
        if !target.exists() || !at.exists() {
            continue;
        }
        done.push(at.clone());
        if let Err(error) = bind_read_only(at, &target) {
            notes.push(format!("`{}` is not shown: {error}", at.display()));
        }
    }
    layout.notes.extend(notes);
}

/// Covers what belongs to the mesh, where it would be seen.
fn hide(layout: &Layout, facts: &MeshFacts) -> Result<(), SandboxError> {
    for path in &facts.hide {
        let target = layout.inside(path);
        if !regions::is_emptied(path) && target.is_dir() {
            mount_tmpfs(&target, Some(0), 0)
                .and_then(|()| make_read_only(&target))
                .map_err(|errno| SandboxError::mount(path, "hiding it", errno))?;
        }
    }
    Ok(())
}

fn make_root_read_only(layout: &Layout) -> Result<(), SandboxError> {
    let overlays = layout
        .in_order()
        .into_iter()
        .filter(|region| matches!(region.kind, Kind::Overlay { .. }))
        .map(|region| region.at);
    for at in overlays.chain([PathBuf::from("/")]) {
        make_read_only(&layout.inside(&at))
            .map_err(|errno| SandboxError::mount(&at, "making it read-only", errno))?;
    }
    Ok(())
}

/// A mount of the container's own whose target is known.
pub(crate) struct Prepared {
    target: PathBuf,
    source: Source,
    /// Inside another mount: the mount point is made when that one stands.
    nested: bool,
}

fn mount_one(layout: &Layout, mount: &Prepared) -> Result<(), SandboxError> {
    let target = layout.inside(&mount.target);
    let fail = |step: &str, error: io::Error| SandboxError::mount(&mount.target, step, error);
    let place = |directory: bool| {
        if !mount.nested {
            return Ok(());
        }
        refuse_links(layout, &mount.target)
            .and_then(|()| make_mount_point(&target, directory))
            .map_err(|error| fail("making the mount point inside another mount", error))
    };
    match &mount.source {
        Source::Bind { path, read_only } => {
            let source = fs::metadata(path)
                .map_err(|error| fail(&format!("looking at its source `{}`", path.display()), error))?;
            place(source.is_dir())?;
            let bound = if *read_only {
                bind_read_only(path, &target)
            } else {
                bind(path, &target).map_err(io::Error::from)
            };
            bound.map_err(|error| fail(&format!("binding `{}`", path.display()), error))
        }
        Source::Tmpfs { bytes } => {
            place(true)?;
            mount_tmpfs(&target, *bytes, 0o777).map_err(|errno| fail("mounting a tmpfs", errno.into()))?;
            chown(&target, Some(layout.owner.0), Some(layout.owner.1))
                .map_err(|error| fail("giving it to the container's user", error))
        }
        Source::File { content, mode } => {
            place(false)?;
            let file = layout.write_aside(content, *mode).map_err(|error| fail("writing it", error))?;
            bind(&file, &target).map_err(|errno| fail("binding a file", errno.into()))
        }
    }
}

/// What is inside a volume is under the control of those who write to it: a link in there would lead out of the container.
fn refuse_links(layout: &Layout, target: &Path) -> io::Result<()> {
    for path in target.ancestors() {
        let inside = layout.inside(path);
        if fs::symlink_metadata(&inside).is_ok_and(|metadata| metadata.is_symlink()) {
            return Err(io::Error::other(format!("`{}` is a symbolic link in a volume", path.display())));
        }
    }
    Ok(())
}

/// Makes the container's root the root of this process, and leaves nothing of the old one.
pub(crate) fn enter(root: &Root) -> Result<(), SandboxError> {
    let failed = |step: &str, errno: nix::Error| SandboxError::mount(Path::new("/"), step, errno);
    nix::unistd::chdir(&root.path).map_err(|errno| failed("entering the root", errno))?;
    nix::unistd::pivot_root(".", ".").map_err(|errno| failed("changing the root", errno))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(|errno| failed("leaving the old root", errno))?;
    nix::unistd::chdir("/").map_err(|errno| failed("entering the root", errno))
}

/// A copy of a program that its process may execute and not read: the kernel then starts it non-dumpable, so that its
/// memory is never readable, not even before it could ask for that itself.
fn protected_copy(program: &Path, facts: &MeshFacts) -> io::Result<PathBuf> {
    let metadata = fs::metadata(program)?;
    let name = format!(
        "{}-{}-{}-{}.{}",
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec()
    );
    let copy = facts.state_dir.join(PROGRAMS).join(name);
    if !copy.exists() {
        let making = copy.with_extension(format!("new-{:016x}", rand::random::<u64>()));
        fs::copy(program, &making)?;
        fs::set_permissions(&making, fs::Permissions::from_mode(0o111))?;
        // Containers start side by side: the first copy stays, because another stage may be about to mount it.
        let placed = fs::hard_link(&making, &copy);
        fs::remove_file(&making)?;
        if let Err(error) = placed
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
    }
    Ok(copy)
}

/// What the program's own path must show besides: the protected copy of a program of the mesh, or a program in a directory
/// that is empty in containers.
fn program_mount(spec: &ContainerSpec, facts: &MeshFacts) -> Result<Option<Mount>, SandboxError> {
    let name = spec.argv.first().map_or("", String::as_str);
    let fail = |reason: String| SandboxError::Program { program: name.to_owned(), reason };
    let program = Path::new(name);
    let trusted = spec.profile.is_trusted();
    if !program.is_absolute() {
        if trusted {
            return Err(fail("a program of the mesh's own is named by its absolute path".to_owned()));
        }
        return Ok(None);
    }
    let inside_mount = spec.mounts.iter().any(|mount| program.starts_with(&mount.target));
    let Ok(real) = fs::canonicalize(program) else {
        return if trusted { Err(fail("there is no such file".to_owned())) } else { Ok(None) };
    };
    if inside_mount || !(trusted || regions::is_emptied(&real)) {
        return Ok(None);
    }
    let path = if trusted {
        protected_copy(&real, facts).map_err(|error| fail(format!("copying it: {error}")))?
    } else {
        real.clone()
    };
    Ok(Some(Mount { target: real, source: Source::Bind { path, read_only: true } }))
}
