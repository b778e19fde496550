//! What can go wrong with namespaces, mounts and processes, with what mends it.

use std::io;

use serde::{Deserialize, Serialize};

/// Why a mesh, a pod or a container could not be had. `Display` says what happened; [`Self::code`] and [`Self::cure`]
/// complete it. It crosses from the stages to the daemon and the command line as JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum SandboxError {
    /// The kernel refuses an unprivileged user namespace.
    #[error("user namespaces are refused to uid {uid}: {reason}")]
    UserNamespaces {
        /// Who asked.
        uid: u32,
        /// Which rule of the machine refuses.
        reason: String,
        /// The one command that allows it.
        cure: String,
    },
    /// The other namespaces are refused.
    #[error("{kinds} namespaces are refused to uid {uid}: {reason}")]
    Namespaces {
        /// Which ones.
        kinds: String,
        /// Who asked.
        uid: u32,
        /// Which rule of the machine refuses.
        reason: String,
        /// The one command that allows it.
        cure: String,
    },
    /// The uids and gids of the mesh could not be mapped.
    #[error("uid {uid} could not be mapped into the mesh: {reason}")]
    IdMap {
        /// The user's uid.
        uid: u32,
        /// What was refused.
        reason: String,
    },
    /// No overlay over the machine's directories.
    #[error("an overlay over `{directory}` is refused: {reason}")]
    Overlay {
        /// The directory that was to be shown.
        directory: String,
        /// What the kernel said.
        reason: String,
        /// What allows it.
        cure: String,
    },
    /// A fresh `/proc` is refused, because parts of the present one are covered.
    #[error("a fresh /proc is refused: {reason}")]
    Proc {
        /// What covers it, or what the kernel said.
        reason: String,
        /// The one command that allows it.
        cure: String,
    },
    /// The kernel lacks a kind of network device, address or setting.
    #[error("network of {of}: {step}: {reason}")]
    Network {
        /// The mesh, or a pod's name.
        of: String,
        /// What was being done.
        step: String,
        /// What the kernel said.
        reason: String,
    },
    /// The state directory cannot be used.
    #[error("state directory `{path}`: {reason}")]
    StateDirectory {
        /// The directory.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A mount could not be made.
    #[error("mount at `{target}`: {step}: {reason}")]
    Mount {
        /// The path inside the container.
        target: String,
        /// What was being done.
        step: String,
        /// What the kernel said.
        reason: String,
    },
    /// The program cannot be executed.
    #[error("program `{program}` cannot be started: {reason}")]
    Program {
        /// The first element of the command.
        program: String,
        /// What the kernel said, and where it was looked for.
        reason: String,
    },
    /// A uid or gid that does not exist in the mesh.
    #[error("{kind} {id} does not exist in this mesh, which has {count} of them")]
    NoSuchId {
        /// `uid` or `gid`.
        kind: String,
        /// The one that was asked for.
        id: u32,
        /// How many there are.
        count: u32,
    },
    /// The container's specification contradicts itself.
    #[error("{field}: {reason}")]
    Spec {
        /// The field of the specification.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A stage ended without saying why; the kernel or somebody killed it.
    #[error("{stage} of {of} ended early: {reason}")]
    Ended {
        /// Which stage.
        stage: String,
        /// Whose.
        of: String,
        /// Its exit status, or the failed system call.
        reason: String,
    },
}

impl SandboxError {
    /// The stable code, listed in `docs/errors.md`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UserNamespaces { .. } => "RM1500",
            Self::Namespaces { .. } => "RM1501",
            Self::IdMap { .. } => "RM1502",
            Self::Overlay { .. } => "RM1503",
            Self::Proc { .. } => "RM1504",
            Self::Network { .. } => "RM1505",
            Self::StateDirectory { .. } => "RM1506",
            Self::Mount { .. } => "RM1507",
            Self::Program { .. } => "RM1508",
            Self::NoSuchId { .. } => "RM1509",
            Self::Spec { .. } => "RM1510",
            Self::Ended { .. } => "RM1511",
        }
    }

    /// What to do about it; empty when the message says it.
    pub fn cure(&self) -> String {
        match self {
            Self::UserNamespaces { cure, .. }
            | Self::Namespaces { cure, .. }
            | Self::Overlay { cure, .. }
            | Self::Proc { cure, .. } => cure.clone(),
            Self::IdMap { .. } => {
                "run as root, or give the user a range: `sudo usermod --add-subuids 100000-165535 --add-subgids \
                 100000-165535 $USER`"
                    .to_owned()
            }
            Self::Network { .. } => {
                "the kernel needs veth devices: `sudo modprobe veth`".to_owned()
            }
            Self::StateDirectory { .. } => format!("mount a tmpfs there: `sudo mount -t tmpfs tmpfs {}`", super::mesh_init::STATE),
            Self::Mount { .. } => "change the mount in the container's specification".to_owned(),
            Self::Program { .. } => {
                "install the program on this machine, or name another one in `command`".to_owned()
            }
            Self::NoSuchId { count, .. } if *count == 1 => {
                "install newuidmap (Debian: `sudo apt-get install uidmap`) and give the user a range: `sudo usermod \
                 --add-subuids 100000-165535 --add-subgids 100000-165535 $USER`; or run as root"
                    .to_owned()
            }
            Self::NoSuchId { .. } => {
                "choose a smaller one, or give the user a larger range in /etc/subuid and /etc/subgid".to_owned()
            }
            Self::Spec { .. } | Self::Ended { .. } => String::new(),
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "errors are handed over where they are found")]
    pub(crate) fn network(of: &str, step: impl Into<String>, reason: impl ToString) -> Self {
        Self::Network { of: of.to_owned(), step: step.into(), reason: reason.to_string() }
    }

    pub(crate) fn mount(
        target: &std::path::Path,
        step: impl Into<String>,
        reason: impl Into<io::Error>,
    ) -> Self {
        Self::Mount {
            target: target.display().to_string(),
            step: step.into(),
            reason: reason.into().to_string(),
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "errors are handed over where they are found")]
    pub(crate) fn ended(stage: &str, of: &str, reason: impl ToString) -> Self {
        Self::Ended { stage: stage.to_owned(), of: of.to_owned(), reason: reason.to_string() }
    }
}
