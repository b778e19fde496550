//! Workloads, services and endpoints as an index with watches.
