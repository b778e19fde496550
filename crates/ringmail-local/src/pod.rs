//! The life of one pod, as a kubelet leads it.
//!
//! Start here: [`PodHandle::start`] begins it; `worker` is the order of things (network, volumes, init containers, sidecars,
//! applications, end), `container` keeps one container running, `state` is what is known, `status` says it in Kubernetes' words.

mod container;
mod hooks;
pub mod probe;
mod spec;
mod state;
mod status;
mod worker;

pub use state::{ContainerKind, PodState};
pub use worker::{PodContext, PodEvents, PodHandle, PodPlan};
