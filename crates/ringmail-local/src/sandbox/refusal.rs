//! Which rule of a machine refuses namespaces, overlays or `/proc`, and the one command that allows it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::error::SandboxError;

/// What a Docker or Podman container must be started with for a mesh inside it.
const CONTAINER_FLAGS: &str = "start the container with `--security-opt seccomp=unconfined --security-opt \
                               apparmor=unconfined --security-opt systempaths=unconfined` (or `--privileged`)";

/// A machine to examine; tests give a directory that looks like one.
pub(crate) struct Machine {
    root: PathBuf,
    /// Settings below `user.` that are 0. Each user namespace has its own, so they are read before entering another.
    zeros: Vec<String>,
}

const KINDS: [&str; 7] = ["user", "net", "mnt", "pid", "ipc", "uts", "cgroup"];

impl Machine {
    pub(crate) fn this() -> Self {
        Self::at(PathBuf::from("/"))
    }

    fn at(root: PathBuf) -> Self {
        let mut machine = Self { root, zeros: Vec::new() };
        let settings = KINDS.iter().map(|kind| format!("user.max_{kind}_namespaces"));
        machine.zeros = settings.filter(|name| machine.setting(name).as_deref() == Some("0")).collect();
        machine
    }

    /// `unshare(CLONE_NEWUSER)` failed.
    pub(crate) fn user_namespaces(&self, uid: u32, errno: Errno) -> SandboxError {
        let (reason, cure) = self.why_no_user_namespace(errno);
        SandboxError::UserNamespaces { uid, reason, cure }
    }

    fn why_no_user_namespace(&self, errno: Errno) -> (String, String) {
        if errno == Errno::EINVAL {
            return (
                "the kernel is built without CONFIG_USER_NS".to_owned(),
                "run as root: `sudo ringmail up …`".to_owned(),
            );
        }
        if let Some(found) = self.refusing_setting() {
            return found;
        }
        if errno == Errno::ENOSPC || errno == Errno::EUSERS {
            return (
                "all that user.max_user_namespaces allows are in use, or 32 are nested".to_owned(),
                "`sudo sysctl -w user.max_user_namespaces=100000`".to_owned(),
            );
        }
        if self.is_filtered() {
            return (
                format!("a seccomp filter answers {errno}: this is a container, or a sandboxed service"),
                CONTAINER_FLAGS.to_owned(),
            );
        }
        (
            format!(
                "the kernel answers {errno} and no setting known to forbid it is set; a security module may"
            ),
            "look at `sudo dmesg | tail`, or run as root: `sudo ringmail up …`".to_owned(),
        )
    }

    /// `unshare` of network, mount, pid, ipc and uts namespaces failed, in the mesh's user namespace or as root.
    pub(crate) fn namespaces(&self, uid: u32, kinds: &str, errno: Errno, as_root: bool) -> SandboxError {
        let (reason, cure) = self.why_no_namespaces(errno, as_root);
        SandboxError::Namespaces { kinds: kinds.to_owned(), uid, reason, cure }
    }

    fn why_no_namespaces(&self, errno: Errno, as_root: bool) -> (String, String) {
        if errno == Errno::EINVAL {
            return (
                "the kernel is built without one of them".to_owned(),
                "use a kernel with CONFIG_NAMESPACES, CONFIG_NET_NS and CONFIG_PID_NS".to_owned(),
            );
        }
        if errno == Errno::ENOSPC {
            if let Some(setting) = self.zeros.first() {
                return (format!("{setting} is 0"), format!("`sudo sysctl -w {setting}=100000`"));
            }
            return (
                "all that user.max_*_namespaces allow are in use".to_owned(),
                "`sudo sysctl -w user.max_net_namespaces=100000 user.max_mnt_namespaces=100000`".to_owned(),
            );
        }
        if as_root {
            return (
                format!("the kernel answers {errno}: root without CAP_SYS_ADMIN, as in a container"),
                "start the container with `--privileged`".to_owned(),
            );
        }
        self.refusing_setting().unwrap_or_else(|| {
            if self.is_filtered() {
                (format!("a seccomp filter answers {errno}: this is a container"), CONTAINER_FLAGS.to_owned())
            } else {
                (
                    format!("the kernel answers {errno} although the user namespace was granted"),
                    "look at `sudo dmesg | tail`, or run as root: `sudo ringmail up …`".to_owned(),
                )
            }
        })
    }

    /// A setting which forbids unprivileged user namespaces, or takes all rights from them.
    fn refusing_setting(&self) -> Option<(String, String)> {
        const SETTINGS: [(&str, &str, &str, &str); 3] = [
            ("kernel.unprivileged_userns_clone", "0", "1", "kernel.unprivileged_userns_clone is 0"),
            ("user.max_user_namespaces", "0", "100000", "user.max_user_namespaces is 0"),
            (
                "kernel.apparmor_restrict_unprivileged_userns",
                "1",
                "0",
                "AppArmor takes all rights from unprivileged user namespaces \
                 (kernel.apparmor_restrict_unprivileged_userns is 1, Ubuntu's default)",
            ),
        ];
        SETTINGS.iter().find(|(name, refusing, ..)| self.setting(name).as_deref() == Some(refusing)).map(
            |(name, _, allowing, reason)| {
                ((*reason).to_owned(), format!("`sudo sysctl -w {name}={allowing}`"))
            },
        )
    }

    /// Mounting a new `/proc` failed.
    pub(crate) fn proc_file_system(&self, errno: Errno) -> SandboxError {
        let covered: Vec<String> = fs::read_to_string(self.root.join("proc/self/mountinfo"))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|path| path.starts_with("/proc/") && *path != "/proc/sys/fs/binfmt_misc")
            .map(str::to_owned)
            .collect();
        if covered.is_empty() {
            let (reason, cure) = self.why_no_namespaces(errno, false);
            return SandboxError::Proc { reason, cure };
        }
        SandboxError::Proc {
            reason: format!(
                "the kernel answers {errno}, because this container covers {}",
                covered.join(", ")
            ),
            cure: CONTAINER_FLAGS.to_owned(),
        }
    }

    /// Mounting an overlay failed.
    pub(crate) fn overlay(&self, directory: &Path, errno: Errno) -> SandboxError {
        let known = fs::read_to_string(self.root.join("proc/filesystems")).unwrap_or_default();
        let has = known.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay");
        let (reason, cure) = if errno == Errno::ENODEV || !has {
            ("the kernel has no overlay file system".to_owned(), "`sudo modprobe overlay`".to_owned())
        } else if errno == Errno::EPERM {
            (
                "the kernel takes no overlay from an ordinary user (Linux before 5.11)".to_owned(),
                "run as root: `sudo ringmail up …`, or use a newer kernel".to_owned(),
            )
        } else {
            (format!("the kernel answers {errno}"), "`sudo dmesg | tail` tells why".to_owned())
        };
        SandboxError::Overlay { directory: directory.display().to_string(), reason, cure }
    }

    fn setting(&self, name: &str) -> Option<String> {
        let path = self.root.join("proc/sys").join(name.replace('.', "/"));
        fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
    }

    fn is_filtered(&self) -> bool {
        fs::read_to_string(self.root.join("proc/self/status"))
            .unwrap_or_default()
            .lines()
            .any(|line| line.split_whitespace().eq(["Seccomp:", "2"]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with these files below `/proc`; removed when dropped.
    struct Fake(Machine);

    impl Fake {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("ringmail-refusal-{}-{name}", std::process::id()));
            for (path, text) in files {
                let path = root.join("proc").join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(Machine::at(root))
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0.root).ok();
        }
    }

    fn cure(error: &SandboxError) -> (&'static str, String) {
        (error.code(), error.cure())
    }

    #[test]
    fn each_setting_that_forbids_user_namespaces_is_named_with_the_command_that_allows_them() {
        for (name, path, value, command) in [
            (
                "clone",
                "sys/kernel/unprivileged_userns_clone",
                "0\n",
                "`sudo sysctl -w kernel.unprivileged_userns_clone=1`",
            ),
            (
                "max",
                "sys/user/max_user_namespaces",
                "0\n",
                "`sudo sysctl -w user.max_user_namespaces=100000`",
            ),
            (
                "apparmor",
                "sys/kernel/apparmor_restrict_unprivileged_userns",
                "1\n",
                "`sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`",
            ),
        ] {
            let machine = Fake::new(name, &[(path, value)]);
            let error = machine.0.user_namespaces(1000, Errno::EPERM);
            assert_eq!(cure(&error), ("RM1500", command.to_owned()), "{error}");
        }
        let allowed = Fake::new("allowed", &[("sys/user/max_user_namespaces", "5\n")]);
        let error = allowed.0.user_namespaces(1000, Errno::EPERM);
        assert!(error.to_string().contains("no setting known"), "{error}");
    }

    #[test]
    fn apparmor_is_named_when_it_refuses_what_comes_after_the_user_namespace() {
        let machine = Fake::new("later", &[("sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")]);
        let error = machine.0.namespaces(1000, "network", Errno::EPERM, false);
        assert_eq!(
            cure(&error),
            ("RM1501", "`sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`".to_owned())
        );
    }

    #[test]
    fn a_container_is_recognised_by_its_filter_and_by_its_covered_proc() {
        let machine = Fake::new(
            "container",
            &[
                ("self/status", "Name:\tx\nSeccomp:\t2\n"),
                (
                    "self/mountinfo",
                    "1 0 0:1 / /proc rw - proc proc rw\n2 1 0:2 /null /proc/kcore rw - tmpfs tmpfs rw\n",
                ),
            ],
        );
        let error = machine.0.user_namespaces(1000, Errno::EPERM);
        assert!(error.cure().contains("seccomp=unconfined"), "{error}");
        let error = machine.0.proc_file_system(Errno::EPERM);
        assert!(error.to_string().contains("/proc/kcore"), "{error}");
        assert_eq!(error.code(), "RM1504");
    }

    #[test]
    fn a_missing_overlay_module_is_told_from_a_refused_overlay() {
        let without = Fake::new("no-overlay", &[("filesystems", "nodev\ttmpfs\n\text4\n")]);
        assert_eq!(
            cure(&without.0.overlay(Path::new("/usr"), Errno::ENODEV)),
            ("RM1503", "`sudo modprobe overlay`".to_owned())
        );
        let with = Fake::new("overlay", &[("filesystems", "nodev\toverlay\n")]);
        let error = with.0.overlay(Path::new("/usr"), Errno::EPERM);
        assert!(error.to_string().contains("before 5.11"), "{error}");
    }
}
