//! Properties that hold for any bytes and any way of cutting them.

use proptest::prelude::*;
use ringmail_wire::http::{Event, Observer};

use crate::http2::{block, frame};
use crate::support::{Says, client, in_pieces, line, observe, server};

/// Cuts bytes after the given lengths, over and over.
fn cut<'a>(bytes: &'a [u8], lengths: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let (mut rest, mut lengths) = (bytes, lengths.iter().cycle());
    std::iter::from_fn(move || {
        let length = (*lengths.next()?).clamp(1, rest.len().max(1));
        let (piece, left) = rest.split_at_checked(length).filter(|(piece, _)| !piece.is_empty())?;
        rest = left;
        Some(piece)
    })
}

fn in_random_pieces(conversation: &[Says], lengths: &[usize]) -> Vec<String> {
    let mut observer = Observer::new();
    let mut lines = Vec::new();
    let mut note = |event: Event<'_>| lines.push(line(&event));
    for says in conversation {
        match says {
            Says::Client(bytes) => cut(bytes, lengths).for_each(|piece| observer.client(piece, &mut note)),
            Says::Server(bytes) => cut(bytes, lengths).for_each(|piece| observer.server(piece, &mut note)),
        }
    }
    observer.close(&mut note);
    lines
}

/// Pieces of HTTP/1, well-formed and not, of which conversations are made.
fn http1_pieces() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::sample::select(vec![
            "GET / HTTP/1.1\r\n", "POST /x?y HTTP/1.1\r\n", "HEAD * HTTP/1.0\n", "CONNECT a:1 HTTP/1.1\r\n",
            "HTTP/1.1 200 OK\r\n", "HTTP/1.1 101 -\r\n", "HTTP/1.0 204\r\n", "HTTP/1.1 100 Continue\r\n\r\n",
            "Content-Length: 5\r\n", "Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n", "Host: h\r\n", " folded\r\n",
            "Connection: upgrade\r\n", "Upgrade: h2c\r\n", "Upgrade: websocket\r\n", "grpc-status: 3\r\n",
            "\r\n", "\r\n\r\n", "\n", "5\r\nhello\r\n", "0\r\n\r\n", "0\r\na: b\r\n\r\n", "hello",
        ]).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..8),
    ]
}

fn http2_pieces() -> impl Strategy<Value = Vec<u8>> {
    let head = prop::sample::select(vec![
        vec![(":method", "GET"), (":path", "/a"), ("x", "y")],
        vec![(":status", "200"), ("grpc-status", "5")],
        vec![(":status", "100")],
        vec![("grpc-status", "0")],
    ]);
    let payload = prop_oneof![
        4 => (head, any::<bool>()).prop_map(|(fields, indexed)| {
            let mut bytes = block(&fields);
            bytes[0] = if indexed { 0x40 } else { 0 };
            bytes
        }),
        1 => prop::collection::vec(any::<u8>(), 0..12),
    ];
    let kind = prop_oneof![4 => Just(1_u8), 4 => Just(0), 1 => 0..11_u8];
    (kind, prop::sample::select(vec![0_u8, 1, 4, 5, 5, 5, 8, 13, 0x2d]), 0..8_u32, payload)
        .prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, payload))
}

fn conversation(
    pieces: impl Strategy<Value = Vec<u8>>,
    start: &'static [u8],
) -> impl Strategy<Value = Vec<Says>> {
    prop::collection::vec((any::<bool>(), prop::collection::vec(pieces, 1..8)), 1..6).prop_map(move |turns| {
        std::iter::once(client(start))
            .chain(turns.into_iter().map(|(from_client, pieces)| {
                if from_client { client(pieces.concat()) } else { server(pieces.concat()) }
            }))
            .collect()
    })
}

/// Each request ends exactly once, after it began; nothing follows a GaveUp.
fn well_formed(lines: &[String]) {
    let mut open = std::collections::BTreeSet::new();
    let mut next = 0;
    for (index, line) in lines.iter().enumerate() {
        let mut words = line.split(' ');
        let Some(stream) = words.next().and_then(|word| word.parse::<u64>().ok()) else {
            let gave_up = line.starts_with("gave up");
            assert!(!gave_up || (index + 1 == lines.len() && open.is_empty()), "{lines:#?}");
            continue;
        };
        match words.next() {
            Some(">") => {
                assert_eq!(stream, next, "{lines:#?}");
                next += 1;
                open.insert(stream);
            }
            Some("<") => assert!(open.contains(&stream), "{lines:#?}"),
            Some(".") => assert!(open.remove(&stream), "{lines:#?}"),
            other => panic!("{other:?} in {lines:#?}"),
        }
    }
    assert!(open.is_empty(), "{lines:#?}");
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn http1_is_read_the_same_however_it_is_cut(
        conversation in conversation(http1_pieces(), b"GET / HTTP/1.1\r\n"),
        lengths in prop::collection::vec(1..40_usize, 1..10),
    ) {
        let whole = observe(&conversation);
        well_formed(&whole);
        prop_assert_eq!(&in_pieces(&conversation, 1), &whole);
        prop_assert_eq!(&in_random_pieces(&conversation, &lengths), &whole);
    }

    #[test]
    fn http2_is_read_the_same_however_it_is_cut(
        conversation in conversation(http2_pieces(), PREFACE),
        lengths in prop::collection::vec(1..40_usize, 1..10),
    ) {
        let whole = observe(&conversation);
        well_formed(&whole);
        prop_assert_eq!(&in_pieces(&conversation, 1), &whole);
        prop_assert_eq!(&in_random_pieces(&conversation, &lengths), &whole);
    }

    #[test]
    fn any_bytes_end_in_well_formed_events(
        turns in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..200)), 0..6),
        start in prop::sample::select(vec![&b""[..], b"GET /", PREFACE]),
    ) {
        let turns = turns.into_iter().map(|(from_client, bytes)| if from_client { client(bytes) } else { server(bytes) });
        let conversation: Vec<Says> = std::iter::once(client(start)).chain(turns).collect();
        well_formed(&observe(&conversation));
    }
}
