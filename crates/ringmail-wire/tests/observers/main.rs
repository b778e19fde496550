//! The observers of HTTP, from outside: what they report for which bytes.

mod http1;
mod http2;
mod random;
mod real;
mod support;
