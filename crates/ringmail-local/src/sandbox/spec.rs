//! What a container is to be: its program, its identity on the machine, and the files it sees.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One container, as the engine wants it started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Program and arguments. A program without a slash is looked for in the `PATH` of [`Self::env`], inside the
    /// container.
    pub argv: Vec<String>,
    /// The whole environment; nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Working directory inside the container; made when it is missing.
    pub cwd: PathBuf,
    /// Host name, at most 64 bytes.
    pub hostname: String,
    /// `None` is the profile's own: the container's root for applications and init, 2102 for the proxy where that uid
    /// is mapped.
    pub uid: Option<u32>,
    /// `None` is the profile's own: 0 for applications and init, 2102 for the proxy where that gid is mapped.
    pub gid: Option<u32>,
    /// Supplementary groups. Where the mesh has a single id, those which cannot exist are left out and named in
    /// [`super::Container::notes`].
    pub groups: Vec<u32>,
    /// What the program may do outside of its own files.
    pub profile: Profile,
    /// Capabilities an application has besides [`super::DEFAULT_CAPABILITIES`], such as `NET_ADMIN` or `CAP_SYS_TIME`;
    /// `ALL` is all. They hold in the container's own user namespace only. Trusted profiles take none.
    pub add_capabilities: Vec<String>,
    /// Capabilities taken away; `ALL` is all; applied before additions.
    pub drop_capabilities: Vec<String>,
    /// The program and its children never gain rights from set-uid files. Trusted profiles always have it.
    pub no_new_privileges: bool,
    /// The root file system refuses writes; [`Self::mounts`] do not.
    pub read_only_root: bool,
    /// Extra mounts, in any order; a mount below another appears inside it.
    pub mounts: Vec<Mount>,
    /// What replaces the machine's own name resolution.
    pub etc: EtcFiles,
    /// Directories which must be empty and writable for the container's user even where they belong to the machine's
    /// root, such as `/var/log/nginx`. Made when missing; writes vanish with the container.
    pub writable: Vec<PathBuf>,
    /// Bytes that all writes outside of [`Self::mounts`] may take together; `None` is half of the machine's memory.
    pub scratch_bytes: Option<u64>,
}

impl ContainerSpec {
    /// An application with everything left at its default.
    pub fn new(argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: vec![("PATH".to_owned(), DEFAULT_PATH.to_owned())],
            cwd: PathBuf::from("/"),
            hostname: "localhost".to_owned(),
            uid: None,
            gid: None,
            groups: Vec::new(),
            profile: Profile::Application,
            add_capabilities: Vec::new(),
            drop_capabilities: Vec::new(),
            no_new_privileges: false,
            read_only_root: false,
            mounts: Vec::new(),
            etc: EtcFiles::default(),
            writable: Vec::new(),
            scratch_bytes: None,
        }
    }
}

/// Where programs are looked for when the environment does not say.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The files of `/etc` that name resolution reads.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EtcFiles {
    /// `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// `/etc/hosts`.
    pub hosts: String,
    /// `/etc/nsswitch.conf`; `None` is the machine's databases with `hosts: files dns`.
    pub nsswitch_conf: Option<String>,
}

/// What a container's program may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Profile {
    /// In a user namespace of its own, nested in the mesh's: Docker's usual capabilities there, none over the pod's
    /// network, so no socket mark, no nftables, and no sight of other containers.
    Application,
    /// In the mesh's user namespace, uid 2102 where mapped, with `CAP_NET_RAW` alone (kept across exec), because a
    /// socket mark needs it; no new privileges; memory not readable by other processes and never in a core file.
    Proxy,
    /// In the mesh's user namespace as its root with `CAP_NET_ADMIN` and `CAP_NET_RAW` alone: may change the pod's
    /// redirect rules. No new privileges; memory protected like the proxy's.
    Init,
}

impl Profile {
    /// Whether the program is the mesh's own and runs outside of a nested user namespace.
    pub fn is_trusted(self) -> bool {
        self != Self::Application
    }
}

/// Something that appears at a path of the container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside the container; symbolic links of the machine are followed. Missing parents are made.
    pub target: PathBuf,
    /// What appears there.
    pub source: Source,
}

/// What a [`Mount`] shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Source {
    /// A file or directory that the daemon sees at this path, with what is mounted below it.
    Bind {
        /// Absolute path in the daemon's view.
        path: PathBuf,
        /// Writes are refused with `EROFS`.
        read_only: bool,
    },
    /// An empty directory in memory, for this container alone.
    Tmpfs {
        /// Bytes it may hold; `None` is half of the machine's memory.
        bytes: Option<u64>,
    },
    /// A file with this content, owned by the container's user, for this container alone; writes vanish.
    File {
        /// The bytes.
        #[serde(with = "base64_bytes")]
        content: Vec<u8>,
        /// Permission bits, such as `0o644`.
        mode: u32,
    },
}

/// A program to run besides the container's own, in all its namespaces (`kubectl exec`, exec probes).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Program and arguments, found as in [`ContainerSpec::argv`].
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory; `None` is the container's.
    pub cwd: Option<PathBuf>,
}

/// Bytes in JSON, which has none.
mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
