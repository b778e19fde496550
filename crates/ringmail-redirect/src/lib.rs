//! Puts the proxy in the path of a pod's connections: nftables through netlink, as data.
