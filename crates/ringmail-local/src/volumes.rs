//! The volumes of a pod: directories below the daemon's state, filled with what the pod's spec asks for.
//!
//! Start here: [`Payload`] says which files a volume holds (pure), [`PodVolumes`] keeps them on the file system, fresh.

mod payload;
mod subpath;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{Gid, Uid, chown};

pub use payload::{FileSpec, Payload, TokenSpec, payload};

use crate::env::{self, ConfigError, Node};
use crate::sandbox::{Ids, Mount, Source};
use crate::store::Store;
use crate::tokens::{Bearer, Tokens};

/// What all pods' volumes need.
#[derive(Clone, Debug)]
pub struct VolumeContext {
    /// The daemon's state directory; nobody may mount it.
    pub state: PathBuf,
    /// Further directories that nobody may mount.
    pub hidden: Vec<PathBuf>,
    /// The one directory of the state that the control plane's pods may mount.
    pub registry: PathBuf,
    /// Signs tokens.
    pub tokens: Tokens,
    /// The machine.
    pub node: Node,
    /// The uids and gids that files may be given to.
    pub ids: Ids,
}

impl VolumeContext {
    fn may_own(&self, uid: u32, gid: u32) -> bool {
        self.ids.has_uid(uid) && self.ids.has_gid(gid)
    }
}

/// Why a pod's volumes cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// What the spec asks for is not there (yet).
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file system refused.
    #[error("volume `{volume}`: {what}: {error}")]
    Io {
        /// The volume.
        volume: String,
        /// What was being done.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The spec asks for what nobody gets.
    #[error("volume `{volume}`: {why}")]
    Refused {
        /// The volume.
        volume: String,
        /// Why.
        why: String,
    },
}

/// The volumes of one pod on the file system.
#[derive(Debug)]
pub struct PodVolumes {
    root: PathBuf,
    paths: BTreeMap<String, VolumePath>,
    /// When each token was made.
    tokens: BTreeMap<(String, PathBuf), SystemTime>,
    mounted: Vec<PathBuf>,
    users: Users,
}

/// The uids of containers that do not run as their spec says, by name.
pub type Users = BTreeMap<String, u32>;

#[derive(Clone, Debug)]
struct VolumePath {
    path: PathBuf,
    read_only: bool,
}

impl PodVolumes {
    /// Makes the volumes of a pod. `claims` are directories that live longer than the pod, by volume name.
    pub fn create(
        context: &VolumeContext,
        store: &Store,
        pod: &Pod,
        bearer: &Bearer,
        claims: &BTreeMap<String, PathBuf>,
        users: &Users,
    ) -> Result<Self, VolumeError> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let root = context.state.join("pods").join(uid);
        let io = |what| move |error| VolumeError::Io { volume: "-".to_owned(), what, error };
        fs::create_dir_all(root.join("volumes")).map_err(io("making its directory"))?;
        fs::create_dir_all(root.join("subpaths")).map_err(io("making its directory"))?;
        let mut volumes = Self {
            root,
            paths: BTreeMap::new(),
            tokens: BTreeMap::new(),
            mounted: Vec::new(),
            users: users.clone(),
        };
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            volumes.volume(context, pod, volume)?;
        }
        for (name, path) in claims {
            fs::create_dir_all(path)
                .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o777)))
                .map_err(|error| VolumeError::Io {
                    volume: name.clone(),
                    what: "making its directory",
                    error,
                })?;
            own_by_group(context, pod, path);
            volumes.paths.insert(name.clone(), VolumePath { path: path.clone(), read_only: false });
        }
        volumes.refresh(context, store, pod, bearer, SystemTime::now())?;
        Ok(volumes)
    }

    /// Brings files to what config maps, secrets and the pod say now, and replaces tokens that grow old. Returns when the next
    /// token does.
    pub fn refresh(
        &mut self,
        context: &VolumeContext,
        store: &Store,
        pod: &Pod,
        bearer: &Bearer,
        now: SystemTime,
    ) -> Result<Option<Duration>, VolumeError> {
        let mut next: Option<Duration> = None;
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            let Some(Payload { files, tokens }) = payload(store, &context.node, pod, volume)? else {
                continue;
            };
            let Some(at) = self.paths.get(&volume.name).cloned() else { continue };
            let refused =
                |error| VolumeError::Io { volume: volume.name.clone(), what: "writing its files", error };
            let mut wanted: Vec<PathBuf> = files.iter().map(|f| f.path.clone()).collect();
            for file in &files {
                self.write_file(context, pod, &volume.name, &at.path, file).map_err(refused)?;
            }
            for token in &tokens {
                let key = (volume.name.clone(), token.path.clone());
                let refresh = crate::tokens::refresh_after(token.lifetime);
                let age = self.tokens.get(&key).map(|made| now.duration_since(*made).unwrap_or_default());
                let due = age.map_or(Duration::ZERO, |age| refresh.saturating_sub(age));
                wanted.push(token.path.clone());
                if !due.is_zero() {
                    next = Some(next.map_or(due, |n| n.min(due)));
                    continue;
                }
                let text = context
                    .tokens
                    .sign(bearer, token.audience.as_deref(), now, token.lifetime)
                    .map_err(|error| refused(io::Error::other(error)))?;
                self.write_token(context, pod, &volume.name, &at.path, &token.path, &text)
                    .map_err(refused)?;
                self.tokens.insert(key, now);
                next = Some(next.map_or(refresh, |n| n.min(refresh)));
            }
            remove_others(&at.path, &wanted).map_err(refused)?;
        }
        Ok(next)
    }

    /// The mounts of one of the pod's containers.
    pub fn mounts(
        &mut self,
        container: &Container,
        variables: &[(String, String)],
    ) -> Result<Vec<Mount>, VolumeError> {
        let mut mounts = Vec::new();
        for (index, wanted) in container.volume_mounts.iter().flatten().enumerate() {
            let volume = self.paths.get(&wanted.name).cloned().ok_or_else(|| VolumeError::Refused {
                volume: wanted.name.clone(),
                why: "the pod does not have it".to_owned(),
            })?;
            let sub_path = match (&wanted.sub_path, &wanted.sub_path_expr) {
                (Some(path), _) if !path.is_empty() => Some(path.clone()),
                (_, Some(expression)) if !expression.is_empty() => Some(env::expand(expression, variables)),
                _ => None,
            };
            let path = match sub_path {
                None => volume.path,
                Some(sub_path) => {
                    let target = self.root.join("subpaths").join(format!("{}-{index}", container.name));
                    // A restarted container gets a fresh look at its volume.
                    if let Some(old) = self.mounted.iter().position(|m| *m == target) {
                        unmount(&self.mounted.swap_remove(old));
                    }
                    subpath::bind(&volume.path, &sub_path, &target, volume.read_only).map_err(|error| {
                        VolumeError::Io { volume: wanted.name.clone(), what: "finding its subPath", error }
                    })?;
                    self.mounted.push(target.clone());
                    target
                }
            };
            let read_only = volume.read_only || wanted.read_only == Some(true);
            mounts.push(Mount {
                target: PathBuf::from(&wanted.mount_path),
                source: Source::Bind { path, read_only },
            });
        }
        Ok(mounts)
    }

    /// Removes everything; the pod is gone.
    pub fn remove(mut self) {
        for mounted in self.mounted.drain(..).rev() {
            unmount(&mounted);
        }
        if let Err(error) = fs::remove_dir_all(&self.root) {
            tracing::warn!(%error, path = %self.root.display(), "removing a pod's volumes");
        }
    }

    fn volume(&mut self, context: &VolumeContext, pod: &Pod, volume: &Volume) -> Result<(), VolumeError> {
        let refused = |why: String| VolumeError::Refused { volume: volume.name.clone(), why };
        if let Some(host_path) = &volume.host_path {
            let path = host_path_of(context, pod, Path::new(&host_path.path), host_path.type_.as_deref())
                .map_err(refused)?;
            self.paths.insert(volume.name.clone(), VolumePath { path, read_only: true });
            return Ok(());
        }
        let path = self.root.join("volumes").join(&volume.name);
        let io = |what| move |error| VolumeError::Io { volume: volume.name.clone(), what, error };
        fs::create_dir_all(&path).map_err(io("making its directory"))?;
        let mut read_only = true;
        if let Some(empty) = &volume.empty_dir {
            read_only = false;
            if let Some(limit) = &empty.size_limit {
                let options = format!("mode=0777,size={}", env::bytes_of(limit)?.max(4096));
                mount(
                    Some("ringmail"),
                    &path,
                    Some("tmpfs"),
                    MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
                    Some(options.as_str()),
                )
                .map_err(|errno| io("mounting its memory")(errno.into()))?;
                self.mounted.push(path.clone());
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777))
                .map_err(io("making its directory"))?;
            own_by_group(context, pod, &path);
        } else {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
                .map_err(io("making its directory"))?;
        }
        self.paths.insert(volume.name.clone(), VolumePath { path, read_only });
        Ok(())
    }

    fn write_file(
        &self,
        context: &VolumeContext,
        pod: &Pod,
        volume: &str,
        root: &Path,
        file: &FileSpec,
    ) -> io::Result<()> {
        let group = fs_group(pod).filter(|g| context.may_own(0, *g));
        // A group that may use the volume may read it.
        let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
        // With a mode that excludes others, the one user of the volume must own it to read it.
        let owner = if mode & 0o044 == 0 { self.single_user(pod, volume) } else { None };
        put(root, &file.path, &file.content, mode, owner.filter(|u| context.may_own(*u, 0)), group)
    }

    fn write_token(
        &self,
        context: &VolumeContext,
        pod: &Pod,
        volume: &str,
        root: &Path,
        path: &Path,
        token: &str,
    ) -> io::Result<()> {
        let group = fs_group(pod).filter(|g| context.may_own(0, *g));
        let (mode, owner, group) = match (self.single_user(pod, volume), group) {
            // The one user of the volume; nobody else has any business with it.
            (Some(user), _) => (0o600, Some(user).filter(|u| context.may_own(*u, 0)), None),
            (None, Some(group)) => (0o640, None, Some(group)),
            (None, None) => (0o644, None, None),
        };
        put(root, path, token.as_bytes(), mode, owner, group)
    }

    /// The uid of all containers that mount a volume, when it is one and the same.
    fn single_user(&self, pod: &Pod, volume: &str) -> Option<u32> {
        let spec = pod.spec.as_ref()?;
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let mut users = containers
            .filter(|c| c.volume_mounts.iter().flatten().any(|m| m.name == volume))
            .map(|c| self.users.get(&c.name).copied().or_else(|| user_of(pod, c)).unwrap_or(0));
        let first = users.next()?;
        users.all(|user| user == first).then_some(first)
    }
}

/// The path of a hostPath volume, if it may be seen. The mesh's own state may not, neither in nor above nor below it; the control
/// plane's registry is the exception.
fn host_path_of(
    context: &VolumeContext,
    pod: &Pod,
    path: &Path,
    kind: Option<&str>,
) -> Result<PathBuf, String> {
    let shown = path.display();
    let real = path.canonicalize().map_err(|error| format!("hostPath {shown}: {error}"))?;
    let control_plane = pod.metadata.namespace.as_deref() == Some(crate::control_plane::NAMESPACE);
    if control_plane && real == context.registry {
        return Ok(real);
    }
    for own in context.hidden.iter().chain([&context.state]) {
        let own = own.canonicalize().unwrap_or_else(|_| own.clone());
        if real.starts_with(&own) || own.starts_with(&real) {
            return Err(format!("hostPath {shown} would show the mesh's own state ({})", own.display()));
        }
    }
    for special in ["/proc", "/sys", "/dev"] {
        if real.starts_with(special) {
            return Err(format!(
                "hostPath {shown} is not a directory of files; containers have their own {special}"
            ));
        }
    }
    let fits = match kind.unwrap_or_default() {
        "Directory" | "DirectoryOrCreate" => real.is_dir(),
        "File" | "FileOrCreate" => real.is_file(),
        _ => true,
    };
    if fits { Ok(real) } else { Err(format!("hostPath {shown} is not a {}", kind.unwrap_or_default())) }
}

/// The uid that a container of a pod is started with, where the spec says one.
pub fn user_of(pod: &Pod, container: &Container) -> Option<u32> {
    let own = container.security_context.as_ref().and_then(|c| c.run_as_user);
    let pods = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|c| c.run_as_user);
    own.or(pods).and_then(|uid| u32::try_from(uid).ok())
}

/// The group that owns a pod's volumes.
pub fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    context.fs_group.and_then(|gid| u32::try_from(gid).ok())
}

fn own_by_group(context: &VolumeContext, pod: &Pod, path: &Path) {
    if let Some(group) = fs_group(pod).filter(|g| context.may_own(0, *g)) {
        let result = chown(path, None, Some(Gid::from_raw(group))).and_then(|()| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o2777))
                .map_err(|_| nix::errno::Errno::EPERM)
        });
        if let Err(error) = result {
            tracing::debug!(%error, group, "giving a volume to fsGroup");
        }
    }
}

/// Writes a file so that a reader sees the old content or the new one. Does nothing when it is as wanted.
fn put(
    root: &Path,
    path: &Path,
    content: &[u8],
    mode: u32,
    owner: Option<u32>,
    group: Option<u32>,
) -> io::Result<()> {
    if path.is_absolute() || path.components().any(|c| !matches!(c, Component::Normal(_))) {
        return Err(io::Error::other(format!("`{}` is not a path inside the volume", path.display())));
    }
    let target = root.join(path);
    if fs::read(&target).is_ok_and(|known| known == content) {
        return Ok(());
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let temporary = root.join(format!("..{}", crate::ids::suffix()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    if owner.is_some() || group.is_some() {
        chown(&temporary, owner.map(Uid::from_raw), group.map(Gid::from_raw))?;
    }
    file.set_permissions(fs::Permissions::from_mode(mode & 0o777))?;
    drop(file);
    fs::rename(temporary, target)
}

/// Removes files of a volume that are no longer wanted.
fn remove_others(root: &Path, wanted: &[PathBuf]) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = PathBuf::from(entry.file_name());
        if !wanted.iter().any(|path| path.starts_with(&name)) {
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

fn unmount(path: &Path) {
    if let Err(error) = umount2(path, MntFlags::MNT_DETACH) {
        tracing::debug!(%error, path = %path.display(), "unmounting a volume");
    }
}
