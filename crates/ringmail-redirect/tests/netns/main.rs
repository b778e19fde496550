//! The rules in real network namespaces, as root and as an ordinary user.

mod common;
mod kernel;
mod redirect;
mod services;
mod validate;
