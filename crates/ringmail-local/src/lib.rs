//! The local mesh: namespaces, addresses, DNS, processes, probes, volumes, tokens.
