//! What an observer makes of HTTP/2 connections.

use crate::support::{Says, client, in_pieces, observe, server};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const WITH_PRIORITY: u8 = 0x20;

/// Checks the events, for the bytes at once and one by one.
fn check(conversation: &[Says], expected: &[&str]) {
    assert_eq!(observe(conversation), expected, "at once");
    assert_eq!(in_pieces(conversation, 1), expected, "byte by byte");
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A block of literals that are not indexed.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "one byte of length");
            bytes.push(text.len() as u8);
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

fn headers(flags: u8, stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, block(fields))
}

fn get(flags: u8, stream: u32, path: &str) -> Vec<u8> {
    headers(flags, stream, &[(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "web")])
}

fn begin(frames: &[Vec<u8>]) -> Says {
    client([PREFACE.to_vec(), frame(SETTINGS, 0, 0, ""), frames.concat()].concat())
}

fn answer(frames: &[Vec<u8>]) -> Says {
    server(frames.concat())
}

#[test]
fn a_grpc_call_with_its_status_in_the_trailers() {
    let call = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/v1.Votes/Cast"),
        (":authority", "voting:8080"),
        ("te", "trailers"),
    ];
    check(
        &[
            begin(&[headers(0, 1, &call), frame(DATA, END_STREAM, 1, "12345")]),
            answer(&[
                frame(SETTINGS, 0, 0, [0, 1, 0, 0, 0x10, 0]),
                headers(0, 1, &[(":status", "200"), ("content-type", "application/grpc")]),
                frame(DATA, 0, 1, "hello"),
                headers(END_STREAM, 1, &[("grpc-status", "2"), ("grpc-message", "no")]),
            ]),
        ],
        &[
            "Http2",
            "0 > POST http|voting:8080|/v1.Votes/Cast HTTP/2.0 te=trailers",
            "0 < 200 HTTP/2.0 content-type=application/grpc",
            "0 . Complete 5/5 grpc=2 grpc-status=2 grpc-message=no",
        ],
    );
}

#[test]
fn a_grpc_failure_of_headers_only() {
    check(
        &[
            begin(&[get(END_STREAM, 1, "/x?q")]),
            answer(&[headers(END_STREAM, 1, &[(":status", "200"), ("grpc-status", "12")])]),
        ],
        &[
            "Http2",
            "0 > GET http|web|/x HTTP/2.0",
            "0 < 200 HTTP/2.0 grpc-status=12",
            "0 . Complete 0/0 grpc=12",
        ],
    );
}

#[test]
fn requests_are_numbered_in_order_and_may_end_in_any() {
    let ok = |stream| headers(END_STREAM, stream, &[(":status", "204")]);
    check(
        &[
            begin(&[get(END_STREAM, 1, "/1"), get(END_STREAM, 3, "/3"), get(END_STREAM, 7, "/7")]),
            answer(&[ok(7), ok(1)]),
        ],
        &[
            "Http2",
            "0 > GET http|web|/1 HTTP/2.0",
            "1 > GET http|web|/3 HTTP/2.0",
            "2 > GET http|web|/7 HTTP/2.0",
            "2 < 204 HTTP/2.0",
            "2 . Complete 0/0",
            "0 < 204 HTTP/2.0",
            "0 . Complete 0/0",
            "1 . Closed 0/0",
        ],
    );
}

#[test]
fn padding_and_priority_are_neither_content_nor_fields() {
    let fields = block(&[(":method", "PUT"), (":path", "/p"), ("host", "h")]);
    let padded = [&[3][..], &[0; 5], &fields, &[0; 3]].concat();
    check(
        &[
            begin(&[
                frame(PRIORITY, 0, 5, [0; 5]),
                frame(HEADERS, END_HEADERS | PADDED | WITH_PRIORITY, 1, padded),
                frame(DATA, PADDED, 1, [&[4][..], b"abc", &[0; 4]].concat()),
                frame(DATA, PADDED | END_STREAM, 1, [0]),
            ]),
            answer(&[
                headers(0, 1, &[(":status", "200")]),
                frame(DATA, PADDED | END_STREAM, 1, [&[1][..], b"xy", &[0]].concat()),
            ]),
        ],
        &["Http2", "0 > PUT |h|/p HTTP/2.0 host=h", "0 < 200 HTTP/2.0", "0 . Complete 3/2"],
    );
}

#[test]
fn header_blocks_go_on_in_continuation_frames() {
    let fields = block(&[(":method", "GET"), (":path", "/long"), ("a", "b")]);
    let (first, rest) = fields.split_at(7);
    let (second, third) = rest.split_at(2);
    check(
        &[begin(&[
            frame(HEADERS, END_STREAM, 1, first),
            frame(CONTINUATION, 0, 1, second),
            frame(CONTINUATION, 0, 1, ""),
            frame(CONTINUATION, END_HEADERS, 1, third),
        ])],
        &["Http2", "0 > GET ||/long HTTP/2.0 a=b", "0 . Closed 0/0"],
    );
}

#[test]
fn nothing_may_come_between_the_parts_of_a_header_block() {
    for between in [frame(DATA, 0, 1, ""), frame(CONTINUATION, 0, 3, ""), frame(99, 0, 0, ""), get(0, 3, "/")]
    {
        let events = observe(&[begin(&[frame(HEADERS, 0, 1, ""), between])]);
        assert_eq!(events, ["Http2", "gave up: a header block that does not continue"]);
    }
    let alone = observe(&[begin(&[frame(CONTINUATION, END_HEADERS, 1, "")])]);
    assert_eq!(alone, ["Http2", "gave up: a header block that does not continue"]);
}

#[test]
fn header_blocks_are_bounded_in_bytes_and_frames() {
    let large = [
        frame(HEADERS, 0, 1, ""),
        frame(CONTINUATION, 0, 1, vec![0; 40_000]),
        frame(CONTINUATION, 0, 1, vec![0; 40_000]),
    ];
    let many: Vec<Vec<u8>> = std::iter::once(frame(HEADERS, 0, 1, ""))
        .chain((0..64).map(|_| frame(CONTINUATION, 0, 1, "")))
        .collect();
    for frames in [&large[..], &many, &[frame(HEADERS, END_HEADERS, 1, vec![0; 65_537])]] {
        let events = observe(&[begin(frames)]);
        assert_eq!(events, ["Http2", "gave up: headers above 64 KiB or 1024 fields"]);
    }
}

#[test]
fn resets_from_either_side_end_a_request_with_their_code() {
    check(
        &[
            begin(&[get(0, 1, "/1"), get(END_STREAM, 3, "/3"), frame(RST_STREAM, 0, 1, [0, 0, 0, 8])]),
            answer(&[
                headers(0, 3, &[(":status", "200")]),
                frame(DATA, 0, 3, "abc"),
                frame(RST_STREAM, 0, 3, [0, 0, 0, 2]),
            ]),
            answer(&[frame(RST_STREAM, 0, 1, [0; 4]), frame(DATA, 0, 3, "late")]),
        ],
        &[
            "Http2",
            "0 > GET http|web|/1 HTTP/2.0",
            "1 > GET http|web|/3 HTTP/2.0",
            "0 . Reset 0/0 reset=8",
            "1 < 200 HTTP/2.0",
            "1 . Reset 0/3 reset=2",
        ],
    );
}

#[test]
fn requests_that_a_leaving_server_did_not_begin_are_refused() {
    let last = |stream: u32| frame(GOAWAY, 0, 0, [&stream.to_be_bytes()[..], &[0; 4], b"bye"].concat());
    check(
        &[
            begin(&[get(END_STREAM, 1, "/1"), get(END_STREAM, 3, "/3")]),
            answer(&[last(0x7fff_ffff), last(1), headers(END_STREAM, 1, &[(":status", "200")])]),
            client(frame(GOAWAY, 0, 0, [0; 8])),
        ],
        &[
            "Http2",
            "0 > GET http|web|/1 HTTP/2.0",
            "1 > GET http|web|/3 HTTP/2.0",
            "1 . Reset 0/0 reset=7",
            "0 < 200 HTTP/2.0",
            "0 . Complete 0/0",
        ],
    );
}

#[test]
fn informational_responses_come_before_the_final_one() {
    check(
        &[
            begin(&[get(END_STREAM, 1, "/")]),
            answer(&[headers(0, 1, &[(":status", "103")]), headers(END_STREAM, 1, &[(":status", "200")])]),
        ],
        &[
            "Http2",
            "0 > GET http|web|/ HTTP/2.0",
            "0 < 103 HTTP/2.0 informational",
            "0 < 200 HTTP/2.0",
            "0 . Complete 0/0",
        ],
    );
}

#[test]
fn an_extended_connect_is_a_request_with_a_protocol() {
    let connect = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":path", "/chat"),
        (":authority", "me:pw@web"),
    ];
    check(
        &[
            begin(&[headers(0, 1, &connect), frame(DATA, 0, 1, "hi")]),
            answer(&[headers(0, 1, &[(":status", "200")]), frame(DATA, END_STREAM, 1, "ho!")]),
        ],
        &[
            "Http2",
            "0 > CONNECT http|web|/chat HTTP/2.0 protocol=websocket",
            "0 < 200 HTTP/2.0",
            "0 . Complete 2/3",
        ],
    );
}

#[test]
fn the_dynamic_table_is_followed_through_blocks_that_nobody_asks_about() {
    // Literals with indexing: in trailers of a request, in a push promise, in headers of a stream that was reset.
    let index = |name: &str, value: &str| {
        let mut bytes = block(&[(name, value)]);
        bytes[0] = 0x40;
        bytes
    };
    let promise = [&2_u32.to_be_bytes()[..], &index("p", "1")].concat();
    let reset = [block(&[(":status", "200")]), index("q", "2")].concat();
    let last = [block(&[(":status", "200")]), vec![0xbe, 0xbf]].concat();
    check(
        &[
            begin(&[
                get(0, 1, "/1"),
                frame(HEADERS, END_HEADERS | END_STREAM, 1, index("t", "0")),
                frame(
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    3,
                    [block(&[(":method", "GET")]), vec![0xbe]].concat(),
                ),
                frame(RST_STREAM, 0, 1, [0; 4]),
            ]),
            answer(&[
                frame(PUSH_PROMISE, END_HEADERS, 1, promise),
                frame(HEADERS, END_HEADERS, 1, reset),
                frame(HEADERS, END_HEADERS | END_STREAM, 2, block(&[(":status", "200")])),
                frame(HEADERS, END_HEADERS | END_STREAM, 3, last),
            ]),
        ],
        &[
            "Http2",
            "0 > GET http|web|/1 HTTP/2.0",
            "1 > GET || HTTP/2.0 t=0",
            "0 . Reset 0/0 reset=0",
            "1 < 200 HTTP/2.0 q=2 p=1",
            "1 . Complete 0/0",
        ],
    );
}

#[test]
fn an_upgraded_connection_goes_on_as_http2_with_its_request_as_stream_1() {
    let request = "POST /up HTTP/1.1\r\nHost: web\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\nContent-Length: 3\r\n\r\nabc";
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    check(
        &[
            client(request),
            server([switch.as_bytes(), &frame(SETTINGS, 0, 0, "")].concat()),
            begin(&[get(END_STREAM, 3, "/next")]),
            answer(&[
                headers(0, 1, &[(":status", "200")]),
                frame(DATA, END_STREAM, 1, "12"),
                headers(END_STREAM, 3, &[(":status", "204")]),
            ]),
        ],
        &[
            "Http1",
            "0 > POST http|web|/up HTTP/1.1 Host=web Connection=Upgrade, HTTP2-Settings Upgrade=h2c HTTP2-Settings= Content-Length=3",
            "0 < 101 HTTP/1.1 informational Connection=Upgrade Upgrade=h2c",
            "Http2",
            "1 > GET http|web|/next HTTP/2.0",
            "0 < 200 HTTP/2.0",
            "0 . Complete 3/2",
            "1 < 204 HTTP/2.0",
            "1 . Complete 0/0",
        ],
    );
}

#[test]
fn broken_frames_are_given_up_on() {
    for (frames, reason) in [
        (frame(DATA, PADDED, 1, ""), "padding longer than its frame"),
        (frame(DATA, PADDED, 1, [2, 0]), "padding longer than its frame"),
        (frame(HEADERS, END_HEADERS | PADDED, 1, [9, 0x82]), "padding longer than its frame"),
        (frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, [0; 4]), "padding longer than its frame"),
        (frame(HEADERS, END_HEADERS, 1, [0x80]), "an HPACK index outside the tables"),
        (frame(HEADERS, END_HEADERS, 0, [0x82]), "a frame of a stream without its number"),
        (frame(HEADERS, END_HEADERS, 2, [0x82]), "a request on a stream of the server's"),
        (frame(RST_STREAM, 0, 1, [0; 5]), "a frame of the wrong length"),
        (frame(GOAWAY, 0, 0, [0; 7]), "a frame of the wrong length"),
    ] {
        check(&[begin(&[frames])], &["Http2", &format!("gave up: {reason}")]);
    }
    check(&[client("PRI * HTTP/2.0\r\n\r\nXX")], &["Http2", "gave up: a broken HTTP/2 preface"]);
    for frames in [frame(DATA, 0, 1, "x"), headers(0, 1, &[]), headers(0, 1, &[(":status", "2000")])] {
        let events = observe(&[begin(&[get(0, 1, "/")]), answer(&[frames])]);
        assert_eq!(events[2], "0 . Unobserved 0/0");
        assert!(events[3].starts_with("gave up: "), "{events:?}");
    }
}

#[test]
fn the_streams_tracked_are_bounded_but_not_those_that_come_and_go() {
    let open = |count: u32| begin(&(0..count).map(|number| get(0, 2 * number + 1, "/")).collect::<Vec<_>>());
    assert_eq!(observe(&[open(1024)]).last().map(String::as_str), Some("1023 . Closed 0/0"));
    assert_eq!(
        observe(&[open(1025)]).last().map(String::as_str),
        Some("gave up: too many requests open at once")
    );
    let rapid: Vec<Vec<u8>> = (0..5000)
        .map(|number| {
            [get(0, 2 * number + 1, "/"), frame(RST_STREAM, 0, 2 * number + 1, [0, 0, 0, 8])].concat()
        })
        .collect();
    assert_eq!(observe(&[begin(&rapid)]).last().map(String::as_str), Some("4999 . Reset 0/0 reset=8"));
}

/// RFC 9113 3.4: a server need not wait for the client's preface, and behind a proxy its SETTINGS are often first.
#[test]
fn a_server_whose_settings_come_before_the_client_speaks_is_observed() {
    let requests =
        [begin(&[get(END_STREAM, 1, "/a")]), server(headers(END_STREAM, 1, &[(":status", "204")]))];
    let usual = observe(&requests);
    let early = [&[server(frame(SETTINGS, 0, 0, [0, 3, 0, 0, 0, 100]))][..], &requests[..]].concat();
    assert!(usual.len() > 2, "{usual:?}");
    assert_eq!(observe(&early), usual);
    assert_eq!(in_pieces(&early, 1), usual);
}
