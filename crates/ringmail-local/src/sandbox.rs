//! Where the mesh's processes live: namespaces, mounts, the network between pods. No objects, no policy.
//!
//! Start here. [`launch_daemon`] makes the mesh's own user, network, mount, pid, ipc and uts namespaces and runs the
//! daemon in there as the only child of a small init; when either of the two dies, the kernel ends the rest. In the
//! daemon, [`Network::set_up`] turns its network namespace into the router between pods, [`PodSandbox::create`] makes a
//! pod's, and [`PodSandbox::start`] a container in it. Nothing here is unsafe: work that needs a process of one thread is
//! done by this program under another first argument (see [`crate::stage`]).
//!
//! ```text
//! ringmail up            launch_daemon ── a socket pair; when it ends, the mesh ends, unless detached
//!   └─ mesh              makes the namespaces; waits
//!        └─ init         pid 1 of the mesh: mounts /proc and the state directory; reaps
//!             └─ daemon  all rights over the mesh's namespaces, none over the machine when it is an ordinary user's
//!                  ├─ init of a container ─ application: nested user namespace, Docker's capabilities in there
//!                  └─ init of a container ─ proxy: the mesh's user namespace, CAP_NET_RAW alone
//! ```
//!
//! Errors have the codes RM1500 to RM1511.

pub(crate) mod channel;
mod container;
pub(crate) mod daemon;
mod error;
mod ids;
pub(crate) mod inside;
pub(crate) mod mesh_init;
mod network;
pub(crate) mod outer;
mod pod;
mod privileges;
pub(crate) mod program;
mod refusal;
mod rootfs;
mod spec;
mod supervise;

use std::path::Path;

pub use container::{Container, ContainerIo, ExecIo, ExecProcess};
pub use daemon::{
    DaemonContext, DaemonEvent, DaemonOutput, DaemonProcess, DaemonSpec, MeshFacts, Reporter, launch_daemon,
};
pub use error::SandboxError;
pub use ids::{IdChoice, Ids};
pub use network::{Network, NetworkSpec};
pub use pod::PodSandbox;
pub use privileges::DEFAULT_CAPABILITIES;
pub use spec::{ContainerSpec, DEFAULT_PATH, EtcFiles, ExecSpec, Mount, Profile, Source};
pub use supervise::Exit;

/// Mounts an empty memory file system in the daemon's mount namespace, for containers to share by [`Source::Bind`].
pub fn mount_tmpfs(path: &Path, bytes: Option<u64>, mode: u32) -> Result<(), SandboxError> {
    rootfs::mount_tmpfs(path, bytes, mode)
        .map_err(|errno| SandboxError::mount(path, "mounting a tmpfs", errno))
}

/// Takes a mount of the daemon's away; containers that have it keep it until they end.
pub fn unmount(path: &Path) -> Result<(), SandboxError> {
    nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH)
        .map_err(|errno| SandboxError::mount(path, "unmounting it", errno))
}
