//! The data plane: moves the bytes between meshed workloads over mutual TLS.
