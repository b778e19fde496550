//! Workloads, services and endpoints as an index with watches.
//!
//! Start here: [`Object`] is what the registry keeps of a Kubernetes object, [`Index`] answers questions about all of
//! them, [`Registry`] shares an index between tasks and wakes those whose answer changed, and [`files`] fills a
//! registry from a directory of Kubernetes JSON.
//!
//! ```no_run
//! # async fn example(settings: ringmail_registry::MeshSettings) {
//! use ringmail_registry::{Key, Registry, files};
//! let registry = Registry::new(settings);
//! tokio::spawn(files::FileSource::new("/var/run/ringmail/registry", registry.clone()).run());
//! registry.synced().await;
//! let ip = "10.142.0.9".parse().expect("an address");
//! let mut changes = registry.subscribe(Key::Ip(ip));
//! loop {
//!     let name = { let index = registry.read(); index.pod_by_ip(ip).map(|pod| index.workload(&pod)) };
//!     println!("{name:?}");
//!     changes.changed().await;
//! }
//! # }
//! ```

pub mod files;
pub mod index;
pub mod object;
mod parse;
pub mod ports;
mod raw;
mod registry;
mod scope;
pub mod watch_dir;

pub use index::{Endpoint, Index, Key, MeshSettings, ServicePort};
pub use object::{
    Controller, Namespace, Node, Object, ObjectName, ObjectRef, Owner, Phase, Pod, PodPort, Probe,
    ProbeAction, Protocol, Service, ServiceKind, ServicePortSpec, TargetPort,
};
pub use parse::ObjectError;
pub use ports::{PortSet, PortSetError};
pub use registry::{Registry, Subscription};
