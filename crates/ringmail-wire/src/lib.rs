//! Bytes without I/O: ClientHello reader, transport header, HTTP/1 and HTTP/2 observers.
