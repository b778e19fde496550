//! The built programs, run as a user would: real meshes, in real namespaces, with other people's programs.
//!
//! Start here: [`harness`] runs a mesh; each other module is a theme.

mod apart;
mod faults;
mod foreign;
mod generated;
mod harness;
mod keys;
mod leftovers;
mod wire;
