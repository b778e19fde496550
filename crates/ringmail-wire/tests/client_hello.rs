//! The ClientHello reader, on hellos that rustls wrote and on broken ones.

use std::sync::Arc;

use proptest::prelude::*;
use ringmail_wire::client_hello::{ClientHello, Hello, LIMIT, MAX_RECORDS, read};

/// The first flight of a client that asks for `name`, with a post-quantum key share.
fn real(name: &str, alpn: &[&str]) -> Vec<u8> {
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let name = name.to_owned().try_into().expect("a valid name");
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes).expect("writing to memory");
    }
    bytes
}

fn complete(bytes: &[u8]) -> ClientHello {
    match read(bytes) {
        Hello::Complete(hello) => hello,
        other => panic!("{other:?}"),
    }
}

/// The same hello in records of `size` bytes.
fn in_records(bytes: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[22, 3, 1], &(part.len() as u16).to_be_bytes()[..], part].concat();
    bytes[5..].chunks(size).flat_map(record).collect()
}

/// A hello with one record, of this body.
fn hello(body: &[u8]) -> Vec<u8> {
    let length = body.len() as u32;
    let message = [&[1], &length.to_be_bytes()[1..], body].concat();
    [&[22, 3, 1], &(message.len() as u16).to_be_bytes()[..], &message].concat()
}

fn body(extensions: &[u8]) -> Vec<u8> {
    let length = (extensions.len() as u16).to_be_bytes();
    [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &length, extensions].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &(content.len() as u16).to_be_bytes(), content].concat()
}

fn malformed(bytes: &[u8]) -> &'static str {
    match read(bytes) {
        Hello::Malformed(rule) => rule,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_post_quantum_hello_is_read_from_any_number_of_segments() {
    let mut bytes = real("web.ballot.serviceaccount.identity.ringmail.cluster.local", &["h2", "http/1.1"]);
    let length = bytes.len();
    assert!(length > 1216, "the ML-KEM key share alone is larger than this: {length}");
    for cut in 0..length {
        assert_eq!(read(&bytes[..cut]), Hello::Incomplete, "cut at {cut}");
    }
    bytes.extend_from_slice(b"what follows");
    let hello = complete(&bytes);
    assert_eq!(hello.sni.as_deref(), Some("web.ballot.serviceaccount.identity.ringmail.cluster.local"));
    assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert_eq!(hello.random, bytes[11..43]);
    assert_eq!(hello.len, length);
}

#[test]
fn a_hello_in_several_records_is_the_same_hello() {
    let bytes = real("a.example", &[]);
    let whole = complete(&bytes);
    for size in [64, 100, 512, 1000] {
        let cut = in_records(&bytes, size);
        for end in 0..cut.len() {
            assert_eq!(read(&cut[..end]), Hello::Incomplete, "records of {size}, cut at {end}");
        }
        assert_eq!(complete(&cut), ClientHello { len: cut.len(), ..whole.clone() });
    }
}

#[test]
fn a_hello_without_a_name_has_none() {
    assert_eq!(complete(&real("127.0.0.1", &[])).sni, None);
    assert_eq!(complete(&hello(&body(&[])[..45 - 4])).sni, None, "no extensions at all");
    // A name of another type comes before the host name.
    let names = [&[0, 10][..], &[9, 0, 2], b"xx", &[0, 0, 2], b"ab"].concat();
    assert_eq!(complete(&hello(&body(&extension(0, &names)))).sni.as_deref(), Some("ab"));
}

#[test]
fn other_protocols_are_not_tls_from_their_first_wrong_byte() {
    for bytes in [
        &b"GET / HTTP/1.1"[..],
        b"\x17\x03\x03",
        b"\x16\x02",
        b"\x16\x03\x05",
        b"\x16\x03\x01\x02\x00\x02",
        b"\0",
        b"SSH-2.0-",
    ] {
        assert_eq!(read(bytes), Hello::NotTls, "{bytes:?}");
    }
    assert_eq!(read(b""), Hello::Incomplete);
    assert_eq!(read(b"\x16"), Hello::Incomplete);
}

#[test]
fn broken_hellos_are_refused_with_the_rule_they_break() {
    let bytes = real("a.example", &[]);
    let name = |content: &[u8]| hello(&body(&extension(0, content)));
    let two = [extension(0, &[0, 4, 0, 0, 1, b'a']), extension(0, &[0, 4, 0, 0, 1, b'b'])].concat();
    let mut alert_between = in_records(&bytes, 512);
    alert_between[5 + 512] = 21;
    let mut large = bytes.clone();
    large[6] = 1;
    for (bytes, rule) in [
        (b"\x16\x03\x01\x00\x00\x01".to_vec(), "an empty handshake record"),
        (b"\x16\x03\x01\x40\x01\x01".to_vec(), "a TLS record above 16 KiB"),
        (alert_between, "a ClientHello broken off by another record"),
        (large, "a ClientHello above 64 KiB"),
        (in_records(&bytes, 4), "a ClientHello in too many records"),
        (hello(&[3, 3]), "a ClientHello cut short inside"),
        (hello(&body(&[0; 3])), "a ClientHello cut short inside"),
        (hello(&[&body(&[])[..], &[0]].concat()), "bytes after the extensions"),
        (hello(&[2; 60]), "a ClientHello of an unknown version"),
        (name(&[0, 3, 0, 0, 0]), "a server name that is no host name"),
        (name(&[0, 5, 0, 0, 2, b'a', b' ']), "a server name that is no host name"),
        (hello(&body(&two)), "two server_name extensions"),
        (hello(&body(&extension(16, &[&[0, 65][..], &[0; 65]].concat()))), "too many ALPN protocols"),
    ] {
        assert_eq!(malformed(&bytes), rule);
    }
}

#[test]
fn no_more_than_the_limit_is_ever_asked_for() {
    // As slow as it gets: as many records as are taken, none of which completes the hello.
    let record = |part: &[u8]| [&[22, 3, 1], &(part.len() as u16).to_be_bytes()[..], part].concat();
    let first = record(&[1, 0, 0xff, 0]);
    let mut bytes = first;
    for _ in 1..MAX_RECORDS {
        bytes.extend(record(&[0; 8]));
    }
    assert_eq!(malformed(&bytes), "a ClientHello in too many records");
    let endless = [record(&[1, 0, 0xff, 0]), record(&vec![0; 1 << 14]).repeat(5)].concat();
    assert!(!matches!(read(&endless[..LIMIT + (1 << 14) + 5]), Hello::Incomplete));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_answered_and_a_final_answer_stays(bytes in prop::collection::vec(any::<u8>(), 0..300), head in 0..7_usize) {
        let bytes = [&[22, 3, 1, 1, 0, 1, 0][..head], &bytes].concat();
        let mut last = Hello::Incomplete;
        for end in 0..=bytes.len() {
            let answer = read(&bytes[..end]);
            if last != Hello::Incomplete {
                prop_assert_eq!(&answer, &last);
            }
            last = answer;
        }
    }

    #[test]
    fn a_real_hello_with_wrong_bytes_never_panics(place in 0..1500_usize, byte in any::<u8>()) {
        let mut bytes = real("web.example", &["h2"]);
        let place = place % bytes.len();
        bytes[place] = byte;
        let _ = read(&bytes);
    }
}
