//! Collects flows from proxies, joins both ends, names them: edges, tap, the server role and its client.
//!
//! Start here: [`join`] decides what is secured, from what both ends of a connection say; [`edges`] makes rows of it and
//! [`table`] prints them; [`tap`] prints requests. [`server::VizServer`] collects from proxies and answers, [`client`]
//! asks it. [`names::Names`] is what viz needs to know of pods; the registry's is [`names::RegistryNames`].

pub mod client;
mod collect;
pub mod edges;
pub mod join;
pub mod names;
pub mod redact;
pub mod resource;
pub mod selector;
pub mod server;
pub mod store;
pub mod table;
pub mod tap;
