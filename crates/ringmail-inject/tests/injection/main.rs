//! Injection of pods and manifests, as its users see it.

mod common;
mod documentation;
mod golden;
mod text;
