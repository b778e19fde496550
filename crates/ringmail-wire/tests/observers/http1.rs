//! What an observer makes of HTTP/1 connections.

use crate::support::{Says, client, in_pieces, observe, server};

/// Checks the events, for the bytes at once and one by one.
fn check(conversation: &[Says], expected: &[&str]) {
    assert_eq!(observe(conversation), expected, "at once");
    assert_eq!(in_pieces(conversation, 1), expected, "byte by byte");
}

const GET: &str = "GET /a?secret=1 HTTP/1.1\r\nHost: web\r\n\r\n";

#[test]
fn a_request_and_its_response_of_known_length() {
    check(
        &[client(GET), server("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")],
        &[
            "Http1",
            "0 > GET http|web|/a HTTP/1.1 Host=web",
            "0 < 200 HTTP/1.1 Content-Length=5",
            "0 . Complete 0/5",
        ],
    );
}

#[test]
fn connections_are_kept_alive_and_requests_are_numbered() {
    let post = "POST /b HTTP/1.1\r\ncontent-length: 3\r\nhost: web\r\n\r\nabc";
    check(
        &[
            client(GET),
            server("HTTP/1.1 204 No Content\r\n\r\n"),
            client(post),
            server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        ],
        &[
            "Http1",
            "0 > GET http|web|/a HTTP/1.1 Host=web",
            "0 < 204 HTTP/1.1",
            "0 . Complete 0/0",
            "1 > POST http|web|/b HTTP/1.1 content-length=3 host=web",
            "1 < 200 HTTP/1.1 content-length=0",
            "1 . Complete 3/0",
        ],
    );
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let requests = "GET /1 HTTP/1.1\r\n\r\n\r\nHEAD /2 HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\n\r\n";
    let responses = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nHTTP/1.1 304\r\nContent-Length: 7\r\n\r\n";
    check(
        &[client(requests), server(responses)],
        &[
            "Http1",
            "0 > GET http||/1 HTTP/1.1",
            "1 > HEAD http||/2 HTTP/1.1",
            "2 > GET http||/3 HTTP/1.1",
            "0 < 200 HTTP/1.1 Content-Length=1",
            "0 . Complete 0/1",
            "1 < 200 HTTP/1.1 Content-Length=9",
            "1 . Complete 0/0",
            "2 < 304 HTTP/1.1 Content-Length=7",
            "2 . Complete 0/0",
        ],
    );
}

#[test]
fn chunked_bodies_both_ways_with_extensions_and_trailers() {
    let request = "PUT /x HTTP/1.1\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n3\r\nabc\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nx: y\r\n\r\n";
    let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0000b\r\nhello world\r\n0\r\ngrpc-status: 13\r\n\r\n";
    check(
        &[client(request), server(response), client(GET), server("HTTP/1.1 204 -\r\n\r\n")],
        &[
            "Http1",
            "0 > PUT http||/x HTTP/1.1 Transfer-Encoding=gzip, Chunked",
            "0 < 200 HTTP/1.1 Transfer-Encoding=chunked",
            "0 . Complete 13/11 grpc=13 grpc-status=13",
            "1 > GET http|web|/a HTTP/1.1 Host=web",
            "1 < 204 HTTP/1.1",
            "1 . Complete 0/0",
        ],
    );
}

#[test]
fn informational_responses_come_before_the_final_one() {
    let request = "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    check(
        &[
            client(request),
            server("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
            client("ok"),
            server("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"),
        ],
        &[
            "Http1",
            "0 > POST http||/ HTTP/1.1 Expect=100-continue Content-Length=2",
            "0 < 100 HTTP/1.1 informational",
            "0 < 103 HTTP/1.1 informational Link=</x>",
            "0 < 201 HTTP/1.1 Content-Length=0",
            "0 . Complete 2/0",
        ],
    );
}

#[test]
fn a_response_without_a_length_ends_with_the_connection() {
    check(
        &[client("GET / HTTP/1.0\r\n\r\n"), server("HTTP/1.0 200 OK\r\n\r\nall of it")],
        &["Http1", "0 > GET http||/ HTTP/1.0", "0 < 200 HTTP/1.0", "0 . Complete 0/9"],
    );
}

#[test]
fn a_connection_cut_in_a_body_does_not_end_its_response_well() {
    check(
        &[client(GET), server("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")],
        &[
            "Http1",
            "0 > GET http|web|/a HTTP/1.1 Host=web",
            "0 < 200 HTTP/1.1 Content-Length=5",
            "0 . Closed 0/3",
        ],
    );
}

#[test]
fn an_early_response_ends_the_exchange_while_the_request_goes_on() {
    let head = "POST /up HTTP/1.1\r\nContent-Length: 6\r\n\r\nabc";
    check(
        &[
            client(head),
            server("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"),
            client("def"),
            client(GET),
            server("HTTP/1.1 204 -\r\n\r\n"),
        ],
        &[
            "Http1",
            "0 > POST http||/up HTTP/1.1 Content-Length=6",
            "0 < 413 HTTP/1.1 Content-Length=0",
            "0 . Complete 3/0",
            "1 > GET http|web|/a HTTP/1.1 Host=web",
            "1 < 204 HTTP/1.1",
            "1 . Complete 0/0",
        ],
    );
}

#[test]
fn the_four_forms_of_a_target() {
    for (target, seen) in [
        ("/p/q?x=/#y", "http|h|/p/q"),
        ("http://user:pw@example.com:81/p?q", "http|example.com:81|/p"),
        ("HTTPS://example.com", "HTTPS|example.com|/"),
        ("http://example.com?q", "http|example.com|/"),
        ("*", "http|h|*"),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nhost: h\r\n\r\n");
        assert_eq!(observe(&[client(request)])[1], format!("0 > GET {seen} HTTP/1.1 host=h"), "{target}");
    }
    let connect = observe(&[client("CONNECT db:5432 HTTP/1.1\r\nhost: h\r\n\r\n")]);
    assert_eq!(connect[1], "0 > CONNECT http|db:5432| HTTP/1.1 host=h");
    let odd = observe(&[client("PURGE nothing HTTP/1.1\r\n\r\n")]);
    assert_eq!(odd, ["Http1", "gave up: a request target in none of the four forms"]);
}

#[test]
fn folded_lines_blanks_and_bare_line_feeds_are_read() {
    check(
        &[client("GET / HTTP/1.1\nA: one\n  two\r\n\tthree \r\nB:\t x \nC:\n\n")],
        &["Http1", "0 > GET http||/ HTTP/1.1 A=one   two  \\tthree B=x C=", "0 . Closed 0/0"],
    );
}

#[test]
fn a_tunnel_ends_its_request_and_the_rest_is_not_looked_at() {
    check(
        &[
            client("CONNECT db:5432 HTTP/1.1\r\n\r\n"),
            client("GET / HTTP/1.1\r\n\r\n"),
            server("HTTP/1.1 200 Connected\r\ncontent-length: 5\r\n\r\n\0\0\0"),
            server("anything"),
        ],
        &[
            "Http1",
            "0 > CONNECT http|db:5432| HTTP/1.1",
            "0 < 200 HTTP/1.1 content-length=5",
            "0 . Complete 0/0",
            "gave up: the connection left HTTP",
        ],
    );
}

#[test]
fn a_refused_tunnel_or_upgrade_leaves_the_connection_in_http() {
    let upgrade = "GET /ws HTTP/1.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    check(
        &[
            client(upgrade),
            client("GET /after HTTP/1.1\r\n\r\n"),
            server("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"),
            server("HTTP/1.1 204 -\r\n\r\n"),
        ],
        &[
            "Http1",
            "0 > GET http||/ws HTTP/1.1 Connection=keep-alive, Upgrade Upgrade=websocket",
            "0 < 200 HTTP/1.1 Content-Length=1",
            "1 > GET http||/after HTTP/1.1",
            "0 . Complete 0/1",
            "1 < 204 HTTP/1.1",
            "1 . Complete 0/0",
        ],
    );
}

#[test]
fn a_websocket_ends_its_request_with_the_101() {
    let upgrade = "GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    check(
        &[
            client(upgrade),
            server("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x01\x02hi"),
        ],
        &[
            "Http1",
            "0 > GET http||/ws HTTP/1.1 Connection=Upgrade Upgrade=websocket",
            "0 < 101 HTTP/1.1 informational Upgrade=websocket",
            "0 . Complete 0/0",
            "gave up: the connection left HTTP",
        ],
    );
}

#[test]
fn framings_that_servers_read_differently_are_given_up_on() {
    for (fields, reason) in [
        ("Content-Length: 1\r\nTransfer-Encoding: chunked", "both Transfer-Encoding and Content-Length"),
        ("Content-Length: 1\r\nContent-Length: 2", "a Content-Length that is no single number"),
        ("Content-Length: 1, 2", "a Content-Length that is no single number"),
        ("Content-Length: +1", "a Content-Length that is no single number"),
        ("Content-Length: 99999999999999999999", "a Content-Length that is no single number"),
        ("Content-Length:", "a Content-Length that is no single number"),
        ("Transfer-Encoding: chunked, gzip", "a transfer coding after chunked"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "a transfer coding after chunked"),
        ("Transfer-Encoding: gzip", "a request whose transfer coding is not chunked"),
        ("Content-Length : 1", "no HTTP/1 field line"),
        (" Content-Length: 1", "no HTTP/1 field line"),
        ("a: b\rc", "no HTTP/1 field line"),
        ("a: \0", "no HTTP/1 field line"),
        (": x", "no HTTP/1 field line"),
    ] {
        let request = format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n");
        check(&[client(request)], &["Http1", &format!("gave up: {reason}")]);
    }
    check(
        &[client("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n")],
        &["Http1", "gave up: Transfer-Encoding in HTTP/1.0"],
    );
    // The twin: the same length twice is one length.
    check(
        &[client("POST / HTTP/1.1\r\nContent-Length: 1, 1\r\nContent-Length: 1\r\n\r\nx")],
        &["Http1", "0 > POST http||/ HTTP/1.1 Content-Length=1, 1 Content-Length=1", "0 . Closed 1/0"],
    );
}

#[test]
fn broken_chunks_are_given_up_on() {
    for chunks in [
        "\r\n",
        "x\r\n",
        "5\nhello",
        "-1\r\n",
        "ffffffffffffffff\r\n",
        "1;\n",
        "1\r\nab",
        "1\r\na\n",
        "1 \rx",
    ] {
        let request = format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
        let events = observe(&[client(&request)]);
        assert_eq!(
            events.last().map(String::as_str),
            Some("gave up: a broken chunk"),
            "{chunks:?}: {events:?}"
        );
        assert_eq!(in_pieces(&[client(&request)], 1).last(), events.last(), "{chunks:?}");
    }
}

#[test]
fn open_requests_are_ended_as_unobserved_when_giving_up() {
    check(
        &[client(GET), client("\x16\x03\x01 no request\n\n")],
        &[
            "Http1",
            "0 > GET http|web|/a HTTP/1.1 Host=web",
            "0 . Unobserved 0/0",
            "gave up: no HTTP/1 request line",
        ],
    );
}

#[test]
fn a_response_that_nobody_asked_for_is_given_up_on() {
    check(
        &[client(GET), server("HTTP/1.1 204 -\r\n\r\nHTTP/1.1 408 Request Timeout\r\n\r\n")],
        &[
            "Http1",
            "0 > GET http|web|/a HTTP/1.1 Host=web",
            "0 < 204 HTTP/1.1",
            "0 . Complete 0/0",
            "gave up: a response without a request",
        ],
    );
}

#[test]
fn a_server_that_speaks_first_does_not_speak_http() {
    check(&[server("220 mail ESMTP\r\n"), client("EHLO x\r\n")], &["NotHttp"]);
    check(&[client("GE"), server("-ERR\r\n")], &["NotHttp"]);
    check(&[client("\x16\x03\x01")], &["NotHttp"]);
    check(&[], &[]);
}

#[test]
fn heads_are_bounded_to_64_kib_and_1024_fields() {
    let head = |length: usize| {
        let start = "GET / HTTP/1.1\r\nA: ";
        client(format!("{start}{}\r\n\r\n", "x".repeat(length - start.len() - 4)))
    };
    for (length, last) in [(65536, "0 . Closed 0/0"), (65537, "gave up: headers above 64 KiB or 1024 fields")]
    {
        for size in [usize::MAX, 1000] {
            assert_eq!(in_pieces(&[head(length)], size).last().map(String::as_str), Some(last), "{length}");
        }
    }
    for (fields, last) in [(1024, "0 . Closed 0/0"), (1025, "gave up: headers above 64 KiB or 1024 fields")] {
        let request = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(fields));
        assert_eq!(observe(&[client(request)]).last().map(String::as_str), Some(last), "{fields}");
    }
    let trailers =
        format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n{}", "a: b\r\n".repeat(20_000));
    assert_eq!(
        in_pieces(&[client(trailers)], 1000).last().map(String::as_str),
        Some("gave up: headers above 64 KiB or 1024 fields")
    );
}

#[test]
fn pipelining_and_what_waits_for_an_upgrade_are_bounded() {
    let many = "GET / HTTP/1.1\r\n\r\n".repeat(1025);
    let events = observe(&[client(many)]);
    assert_eq!(events.last().map(String::as_str), Some("gave up: too many requests open at once"));
    assert_eq!(events.iter().filter(|event| event.contains(" . Unobserved")).count(), 1024);
    let upgrade = "GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    let events = in_pieces(&[client(upgrade), client(vec![b'x'; 65537])], 1000);
    assert_eq!(
        events.last().map(String::as_str),
        Some("gave up: more than 64 KiB sent before an upgrade was answered")
    );
}
