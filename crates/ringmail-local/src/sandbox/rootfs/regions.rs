//! How each directory of the machine is shown in a container.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, eaccess};

use super::mounting::make_mount_point;
use super::table::MountTable;
use crate::sandbox::daemon::MeshFacts;

/// A part of the container's tree; the longest path that contains a file decides.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    pub(crate) at: PathBuf,
    pub(crate) kind: Kind,
}

/// How a region is shown.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// Directories of the container's own memory file system, made before anything is mounted.
    Plain,
    /// The machine's directory below `layer/upper`, which takes the writes.
    Overlay {
        layer: PathBuf,
        /// Something stands in the upper layer, so there is no doing without it.
        used: bool,
        read_only: bool,
    },
    /// The machine's directory as it is.
    ReadOnly,
    /// An empty directory.
    Fresh { directory: PathBuf },
}

/// Empty in every container.
const EMPTY: &[(&str, u32)] = &[("/run", 0o755), ("/tmp", 0o1777)];
/// Made elsewhere, or of no use.
const SKIPPED: &[&str] = &["/proc", "/sys", "/dev", "/lost+found"];
/// Where programs keep what they write, and whether the machine's own content is shown there.
const VARIABLE: &[(&str, bool)] =
    &[("/var/cache", true), ("/var/lib", true), ("/var/log", false), ("/var/spool", true)];
/// Below each of them.
const VARIABLE_DEPTH: u32 = 2;
const VARIABLE_DIRECTORIES: u32 = 1000;
/// Files larger than this are bound rather than copied where a directory cannot be an overlay.
const COPIED_BYTES: u64 = 1 << 20;

/// Whether containers do not see the machine's files at this path, because the directory is empty in each.
pub(crate) fn is_emptied(path: &Path) -> bool {
    EMPTY.iter().any(|(empty, _)| path.starts_with(empty))
}

/// The whole tree, before it is mounted.
pub(crate) struct Layout {
    regions: BTreeMap<PathBuf, Kind>,
    /// Files that are bound read-only.
    files: Vec<PathBuf>,
    /// Files of the machine that the container has its own of.
    replaced: BTreeSet<PathBuf>,
    pub(crate) table: MountTable,
    pub(crate) root: PathBuf,
    scratch: PathBuf,
    pub(crate) owner: (u32, u32),
    layers: u32,
    pub(crate) notes: Vec<String>,
    facts: MeshFacts,
}

impl Layout {
    pub(crate) fn of_machine(
        facts: &MeshFacts,
        table: MountTable,
        scratch: PathBuf,
        root: PathBuf,
        owner: (u32, u32),
    ) -> io::Result<Self> {
        let mut layout = Self {
            regions: BTreeMap::from([
                (PathBuf::from("/"), Kind::Plain),
                (PathBuf::from("/dev"), Kind::Plain),
            ]),
            files: Vec::new(),
            replaced: BTreeSet::new(),
            table,
            root,
            scratch,
            owner,
            layers: 0,
            notes: Vec::new(),
            facts: facts.clone(),
        };
        for (path, mode) in EMPTY {
            let path = Path::new(path);
            make_directory(&layout.inside(path), *mode)?;
            layout.regions.insert(path.to_owned(), Kind::Plain);
        }
        make_directory(&layout.inside(Path::new("/run/lock")), 0o1777)?;
        for entry in sorted(Path::new("/"))? {
            let path = entry.path();
            let skipped = SKIPPED.iter().any(|skipped| path == Path::new(skipped)) || is_emptied(&path);
            if !skipped && (entry.file_type()?.is_dir() || entry.file_type()?.is_symlink()) {
                layout.show(&path)?;
            }
        }
        for home in &facts.homes {
            if home.is_dir() && !is_emptied(home) && !layout.regions.contains_key(home) {
                layout.regions.insert(home.clone(), Kind::ReadOnly);
            }
        }
        if facts.is_rootless() {
            layout.give_variable_directories()?;
        }
        Ok(layout)
    }

    /// In a container's image, directories such as `/var/lib/nginx` belong to ids that exist; here they belong to ids of the
    /// machine which an ordinary user's mesh does not have. So that programs can write where they are used to, the
    /// directories below [`VARIABLE`] are the container's user's, and those that nobody here may look into are empty.
    fn give_variable_directories(&mut self) -> io::Result<()> {
        for (top, shown) in VARIABLE {
            let top = Path::new(top);
            if !top.is_dir() || self.table.is_mount_point(top) {
                continue;
            }
            self.give_directory(top)?;
            if !shown {
                self.add_fresh(top, 0o755)?;
            }
            let mut given = 0;
            let mut pending = vec![(top.to_owned(), 1)];
            while let Some((directory, depth)) = pending.pop() {
                for entry in sorted(&directory)? {
                    let path = entry.path();
                    let skipped = !entry.file_type()?.is_dir()
                        || self.table.is_mount_point(&path)
                        || super::table::belongs_to_an_engine(&path);
                    if skipped || given >= VARIABLE_DIRECTORIES {
                        continue;
                    }
                    given += 1;
                    self.give_directory(&path)?;
                    if eaccess(&path, AccessFlags::R_OK | AccessFlags::X_OK).is_err() {
                        self.add_fresh(&path, 0o755)?;
                    } else if depth < VARIABLE_DEPTH {
                        pending.push((path, depth + 1));
                    }
                }
            }
        }
        Ok(())
    }

    fn give_directory(&mut self, path: &Path) -> io::Result<()> {
        let mode = fs::metadata(path)?.mode() & 0o7777;
        let Some(staged) = self.staged(path) else { return Ok(()) };
        make_directory(&staged, mode | 0o700)?;
        chown(&staged, Some(self.owner.0), Some(self.owner.1))
    }

    /// Plans how one entry of the machine's tree appears.
    fn show(&mut self, path: &Path) -> io::Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        let inside = self.inside(path);
        if metadata.is_symlink() {
            return symlink(fs::read_link(path)?, inside);
        }
        if !metadata.is_dir() {
            return self.show_file(path, &metadata);
        }
        make_directory(&inside, metadata.mode() & 0o7777)?;
        if self.facts.homes.iter().any(|home| home == path) {
            self.regions.insert(path.to_owned(), Kind::ReadOnly);
        } else if self.table.is_mount_point(path)
            && path.parent().is_some_and(|parent| parent != Path::new("/"))
        {
            // Bound later, with the other mounts of the machine.
        } else if self.has_locked_below(path) {
            // The kernel takes no overlay over a directory whose mounts an ordinary user could so uncover: this directory
            // is made anew, and its entries are shown one by one.
            self.regions.insert(path.to_owned(), Kind::Plain);
            for entry in sorted(path)? {
                self.show(&entry.path())?;
            }
        } else {
            let layer = self.new_layer(&metadata)?;
            self.regions.insert(path.to_owned(), Kind::Overlay { layer, used: false, read_only: false });
        }
        Ok(())
    }

    fn show_file(&mut self, path: &Path, metadata: &fs::Metadata) -> io::Result<()> {
        let inside = self.inside(path);
        let mounted = self.table.is_mount_point(path);
        if !metadata.is_file() && !mounted {
            return Ok(());
        }
        if !mounted && metadata.len() <= COPIED_BYTES {
            return match fs::copy(path, &inside) {
                Ok(_) => Ok(()),
                // What this user may not read, the container has no use for.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                Err(error) => Err(error),
            };
        }
        make_mount_point(&inside, false)?;
        if !mounted {
            self.files.push(path.to_owned());
        }
        Ok(())
    }

    /// Mounts that came from outside of the mesh's user namespace are locked to what they cover.
    fn has_locked_below(&self, path: &Path) -> bool {
        self.facts.is_rootless()
            && self.table.below(path).any(|entry| !entry.at.starts_with(&self.facts.state_dir))
    }

    fn new_directory(&mut self, name: &str) -> io::Result<PathBuf> {
        self.layers += 1;
        let directory = self.scratch.join(format!("{name}-{}", self.layers));
        fs::create_dir(&directory)?;
        Ok(directory)
    }

    fn new_layer(&mut self, metadata: &fs::Metadata) -> io::Result<PathBuf> {
        let layer = self.new_directory("layer")?;
        make_directory(&layer.join("upper"), metadata.mode() & 0o7777)?;
        fs::create_dir(layer.join("work"))?;
        self.give_like(&layer.join("upper"), metadata);
        Ok(layer)
    }

    /// Gives a made directory to whom the machine's belongs, if that id exists here; else it is the container root's.
    pub(crate) fn give_like(&self, made: &Path, like: &fs::Metadata) {
        // 65534 stands for all ids that do not exist here.
        let known = |exists: bool, id: u32| (exists && id != 65_534).then_some(id);
        let uid = known(self.facts.ids.has_uid(like.uid()), like.uid());
        let gid = known(self.facts.ids.has_gid(like.gid()), like.gid());
        drop(chown(made, uid, gid));
    }

    /// A path of the container, before it is entered.
    pub(crate) fn inside(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// All regions, parents first, then files.
    pub(crate) fn in_order(&self) -> Vec<Region> {
        let regions = self.regions.iter().map(|(at, kind)| Region { at: at.clone(), kind: kind.clone() });
        regions.collect()
    }

    /// Files which are bound, each read-only.
    pub(crate) fn bound_files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The machine's file at this path is not shown, even if it is a mount.
    pub(crate) fn replace(&mut self, path: &Path) {
        self.replaced.insert(path.to_owned());
    }

    pub(crate) fn is_replaced(&self, path: &Path) -> bool {
        self.replaced.contains(path)
    }

    /// The region that decides about a path.
    pub(crate) fn region(&self, path: &Path) -> Region {
        path.ancestors()
            .find_map(|at| self.regions.get(at).map(|kind| Region { at: at.to_owned(), kind: kind.clone() }))
            .unwrap_or(Region { at: PathBuf::from("/"), kind: Kind::Plain })
    }

    /// Whether mounts of the machine at this path are shown on top.
    pub(crate) fn shows_submounts(&self, path: &Path) -> bool {
        let Region { at, kind } = self.region(path);
        let special = is_emptied(path) || SKIPPED.iter().any(|special| path.starts_with(special));
        // A top-level directory that is itself a mount is an overlay already.
        !special && at != path && path != Path::new("/") && matches!(kind, Kind::Plain | Kind::Overlay { .. })
    }

    /// Where to make something that is to appear at `path`, before anything is mounted there. The region becomes one that
    /// can hold it.
    pub(crate) fn staging(&mut self, path: &Path) -> io::Result<PathBuf> {
        let Region { at, kind } = self.region(path);
        let (layer, read_only) = match kind {
            Kind::Plain | Kind::Fresh { .. } => (None, false),
            Kind::Overlay { layer, read_only, .. } => (Some(layer), read_only),
            Kind::ReadOnly => (Some(self.new_layer(&fs::metadata(&at)?)?), true),
        };
        if let Some(layer) = layer {
            self.regions.insert(at, Kind::Overlay { layer, used: true, read_only });
        }
        Ok(self.staged(path).unwrap_or_else(|| self.inside(path)))
    }

    /// As [`Self::staging`], if the region can hold something as it is.
    fn staged(&self, path: &Path) -> Option<PathBuf> {
        let Region { at, kind } = self.region(path);
        let below = path.strip_prefix(&at).unwrap_or(path);
        let directory = match kind {
            Kind::Plain => return Some(self.inside(path)),
            Kind::Fresh { directory } => directory,
            Kind::Overlay { layer, .. } => layer.join("upper"),
            Kind::ReadOnly => return None,
        };
        // An empty path would add a slash.
        Some(if below.as_os_str().is_empty() { directory } else { directory.join(below) })
    }

    /// Shows an empty directory at `path`; its mount point exists.
    pub(crate) fn add_fresh(&mut self, path: &Path, mode: u32) -> io::Result<()> {
        let directory = self.new_directory("fresh")?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(mode))?;
        chown(&directory, Some(self.owner.0), Some(self.owner.1))?;
        self.regions.insert(path.to_owned(), Kind::Fresh { directory });
        Ok(())
    }

    /// A file of the container's user which is seen only where it is bound.
    pub(crate) fn write_aside(&self, content: &[u8], mode: u32) -> io::Result<PathBuf> {
        let path = self.scratch.join(format!("file-{:016x}", rand::random::<u64>()));
        write_file(&path, content, mode, self.owner)?;
        Ok(path)
    }
}

pub(crate) fn write_file(path: &Path, content: &[u8], mode: u32, owner: (u32, u32)) -> io::Result<()> {
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    chown(path, Some(owner.0), Some(owner.1))
}

/// A directory with exactly this mode, whatever the umask.
pub(crate) fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn sorted(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    let mut entries = match fs::read_dir(directory) {
        // Shown empty: this user may not look into it anyway.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Vec::new(),
        entries => entries?.collect::<io::Result<Vec<_>>>()?,
    };
    entries.sort_by_key(fs::DirEntry::file_name);
    Ok(entries)
}
