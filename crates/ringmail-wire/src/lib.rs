//! Bytes without I/O: what the proxy and the proof read from a connection, with no socket in sight.
//!
//! Start here: [`client_hello::read`] tells mesh TLS from application TLS from plaintext; [`transport_header`] is what a
//! peer's proxy writes first on a direct connection; [`http::Observer`] reads HTTP/1 and HTTP/2 in passing.
//!
//! Everything here is bounded in memory, never panics on any input, and makes the same of the same bytes however they
//! are cut into pieces.

pub mod client_hello;
pub mod http;
pub mod transport_header;
