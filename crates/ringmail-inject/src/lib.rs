//! Pod spec in, patch out: a pure function.
//!
//! Start here: [`Injector::inject`] takes a [`Request`] (a pod or pod template, its namespace's annotations, its owner)
//! and gives an [`Outcome`]: a JSON patch that adds the proxy, or the reasons why there is none. [`Values`] holds
//! everything that differs between meshes. [`options`] is the table of annotations. [`uninject`] takes everything out
//! again, and [`text`] does both to manifests as text, so that whatever is not touched stays byte for byte.

mod container;
mod decide;
mod environment;
mod error;
mod inject;
pub mod options;
mod patch;
mod ports;
mod settings;
pub mod text;
mod uninject;
mod values;
pub mod workload;

pub use decide::SkipReason;
pub use error::{InjectError, Warning};
pub use inject::{Injector, Namespace, Outcome, Owner, Request};
pub use patch::{Operation, Patch, apply_patch};
pub use uninject::uninject;
pub use values::{Exemption, Values};

/// Container of the proxy.
pub const PROXY_CONTAINER: &str = "ringmail-proxy";

/// Init container that redirects the pod's connections to the proxy.
pub const INIT_CONTAINER: &str = "ringmail-init";

/// Whether a pod, or a namespace's pods, are to be meshed: `enabled` or `disabled`.
pub const INJECT_ANNOTATION: &str = "ringmail.dev/inject";

/// Before the name of an option.
pub const OPTION_PREFIX: &str = "config.ringmail.dev/";

/// Label of a meshed pod: the namespace of its control plane.
pub const CONTROL_PLANE_LABEL: &str = "ringmail.dev/control-plane-ns";

/// Label of a meshed pod: its own namespace.
pub const WORKLOAD_NAMESPACE_LABEL: &str = "ringmail.dev/workload-ns";

/// Before the kind of a meshed pod's owner in a label whose value is the owner's name.
pub const OWNER_LABEL_PREFIX: &str = "ringmail.dev/proxy-";

/// Label of the control plane's pods: `identity`, `destination` or `viz`.
pub const COMPONENT_LABEL: &str = "ringmail.dev/control-plane-component";

/// Annotation of a meshed pod: who injected it.
pub const CREATED_BY_ANNOTATION: &str = "ringmail.dev/created-by";

/// Annotation of a meshed pod: the version of its proxy.
pub const VERSION_ANNOTATION: &str = "ringmail.dev/proxy-version";

/// Annotation of a meshed pod: the SHA-256 fingerprints of the trust anchors that its proxy starts with.
pub const ANCHORS_ANNOTATION: &str = "ringmail.dev/trust-root-sha256";

/// Annotation of a meshed pod: the options that injection wrote down because the pod itself did not set them.
pub const EFFECTIVE_ANNOTATION: &str = "ringmail.dev/effective-options";

/// The volume with the token that proves the workload, and the token's file in it.
pub const TOKEN_VOLUME: &str = "ringmail-identity-token";

/// Where that volume is mounted.
pub const TOKEN_DIRECTORY: &str = "/var/run/secrets/tokens";
