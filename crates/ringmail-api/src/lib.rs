//! The gRPC APIs: Linkerd's proxy API as [`linkerd`], and our own services.
//!
//! Start here: [`flows`] is what a proxy saw, [`sources`] what the control plane knows of a client, [`viz`] what the
//! command line asks. [`convert`] takes flows from and to [`ringmail_vocab`].

pub mod convert;

/// Linkerd's proxy API (`io.linkerd.proxy.*`), as published for its proxy.
pub use linkerd2_proxy_api as linkerd;

macro_rules! generated {
    ($(#[$doc:meta])* $name:ident = $package:literal) => {
        $(#[$doc])*
        #[allow(missing_docs, unreachable_pub, clippy::pedantic, reason = "generated from documented .proto files")]
        pub mod $name {
            tonic::include_proto!($package);
        }
    };
}

generated! {
    /// What a proxy saw of each connection.
    flows = "ringmail.flows.v1"
}
generated! {
    /// What the control plane knows of the source of a connection.
    sources = "ringmail.sources.v1"
}
generated! {
    /// What the command line asks of viz.
    viz = "ringmail.viz.v1"
}
