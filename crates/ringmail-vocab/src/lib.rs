//! The shared nouns: security of a connection, reasons, flows, workload references, with their text and JSON forms.
//!
//! Start here: [`Security`] is the one type for what protects a connection; [`Flow`] is the record of one connection
//! as one proxy saw it; the proxy's log, tap, flows, edges and metrics all use these words and no others.

pub mod flow;
pub mod security;

pub use flow::{CloseReason, Closed, ClosedBy, Direction, Flow, FlowId, Protocol, WorkloadRef};
pub use security::{PlaintextReason, RefusalReason, Security, TlsSession};
