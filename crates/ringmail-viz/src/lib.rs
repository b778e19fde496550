//! Collects flows from proxies, joins both ends, names them: edges, tap, the server role and its client.
