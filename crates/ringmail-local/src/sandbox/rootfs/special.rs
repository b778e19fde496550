//! `/proc`, `/sys` and `/dev` of a container.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use nix::mount::{MsFlags, mount};

use super::mounting::{bind, bind_read_only, make_mount_point, make_read_only, mount_tmpfs};
use crate::sandbox::error::SandboxError;
use crate::sandbox::ids::Ids;
use crate::sandbox::refusal::Machine;

/// Parts of `/proc` that change the machine: read-only, as in Docker.
const READ_ONLY: &[&str] = &["bus", "fs", "irq", "sys", "sysrq-trigger"];
/// Parts of `/proc` that tell about the machine's memory and keys: empty, as in Docker.
const MASKED: &[&str] = &[
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// The processes of this process's pid namespace at `root/proc`, and the mount of the machine's devices at `root/sys`.
pub(crate) fn mount_proc_and_sys(root: &Path) -> Result<(), SandboxError> {
    let proc = root.join("proc");
    let restricted = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    fs::create_dir(&proc).map_err(|error| failed("/proc", "making it", error))?;
    mount(Some("proc"), &proc, Some("proc"), restricted, None::<&str>)
        .map_err(|errno| Machine::this().proc_file_system(errno))?;
    for name in READ_ONLY {
        let path = proc.join(name);
        if path.exists() {
            bind_read_only(&path, &path)
                .map_err(|error| failed(&format!("/proc/{name}"), "read-only", error))?;
        }
    }
    for name in MASKED {
        let path = proc.join(name);
        let masked = match path.metadata() {
            Err(_) => Ok(()),
            Ok(metadata) if metadata.is_dir() => {
                mount_tmpfs(&path, Some(0), 0o555).and_then(|()| make_read_only(&path))
            }
            Ok(_) => bind(Path::new("/dev/null"), &path),
        };
        masked.map_err(|errno| failed(&format!("/proc/{name}"), "covering it", errno))?;
    }

    let sys = root.join("sys");
    fs::create_dir(&sys).map_err(|error| failed("/sys", "making it", error))?;
    // A fresh one shows the pod's own network devices; some containers refuse it, then the machine's is shown.
    let fresh = mount(Some("sysfs"), &sys, Some("sysfs"), restricted | MsFlags::MS_RDONLY, None::<&str>);
    if fresh.is_err() {
        return bind_read_only(Path::new("/sys"), &sys).map_err(|error| failed("/sys", "read-only", error));
    }
    let groups = sys.join("fs/cgroup");
    if groups.exists() {
        bind_read_only(Path::new("/sys/fs/cgroup"), &groups)
            .map_err(|error| failed("/sys/fs/cgroup", "read-only", error))?;
    }
    Ok(())
}

/// A small `/dev` with terminals and shared memory of its own.
pub(crate) fn make_dev(root: &Path, ids: &Ids) -> Result<(), SandboxError> {
    let dev = root.join("dev");
    let fail = |step: &str, error: io::Error| failed("/dev", step, error);
    fs::create_dir(&dev).map_err(|error| fail("making it", error))?;
    for name in DEVICES {
        let (device, shown) = (Path::new("/dev").join(name), dev.join(name));
        make_mount_point(&shown, false).map_err(|error| fail(name, error))?;
        bind(&device, &shown).map_err(|errno| fail(name, errno.into()))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, dev.join(name)).map_err(|error| fail(name, error))?;
    }
    let shm = dev.join("shm");
    fs::create_dir(&shm).map_err(|error| fail("shm", error))?;
    mount_tmpfs(&shm, None, 0o1777).map_err(|errno| fail("shm", errno.into()))?;
    let pts = dev.join("pts");
    fs::create_dir(&pts).map_err(|error| fail("pts", error))?;
    // Group 5 is `tty` everywhere; without a range it does not exist here.
    let options = if ids.has_gid(5) {
        "newinstance,ptmxmode=0666,mode=0620,gid=5"
    } else {
        "newinstance,ptmxmode=0666,mode=0620"
    };
    mount(Some("devpts"), &pts, Some("devpts"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, Some(options))
        .map_err(|errno| fail("pts", errno.into()))?;
    fs::set_permissions(&dev, fs::Permissions::from_mode(0o755)).map_err(|error| fail("mode", error))
}

fn failed(target: &str, step: &str, reason: impl Into<io::Error>) -> SandboxError {
    SandboxError::mount(Path::new(target), step, reason)
}
