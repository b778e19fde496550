//! The relay between real sockets: half-close, resets, cut streams, backpressure.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::{Mesh, until};
use ringmail_proxy::flows::Counters;
use ringmail_proxy::observe::Observer;
use ringmail_proxy::relay::{CHUNK, End, Wire, relay};
use ringmail_proxy::sockets::close_with_reset;
use ringmail_proxy::tls::hello::{self, Opening};
use ringmail_proxy::tls::{self, Prefixed, TlsConnection};
use ringmail_vocab::{CloseReason, ClosedBy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("has one");
    let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (near.expect("connects"), far.expect("accepts").0)
}

struct Relayed {
    client: TcpStream,
    server: TcpStream,
    counters: Arc<Counters>,
    end: JoinHandle<End>,
}

fn run<C: Wire + 'static, S: Wire + 'static>(
    mut client: C,
    mut server: S,
) -> (Arc<Counters>, JoinHandle<End>) {
    let counters = Arc::new(Counters::default());
    let counted = Arc::clone(&counters);
    let end =
        tokio::spawn(async move { relay(&mut client, &mut server, &counted, &mut Observer::off()).await });
    (counters, end)
}

/// An application and a server with a relay between them.
async fn relayed() -> Relayed {
    let ((client, at_proxy), (to_server, server)) = (pair().await, pair().await);
    let (counters, end) = run(at_proxy, to_server);
    Relayed { client, server, counters, end }
}

async fn tls_pair(mesh: &Mesh) -> (TlsConnection<TcpStream>, TlsConnection<TcpStream>) {
    let (bot, web) = (mesh.id("bot", "ballot"), mesh.id("web", "ballot"));
    let (client, server) = (mesh.credentials(&bot), mesh.credentials(&web));
    let (near, mut far) = pair().await;
    let accept = async {
        let mut bytes = Vec::new();
        let Ok(Opening::Tls(hello)) = hello::read(&mut far, &mut bytes).await else { panic!("no hello") };
        tls::accept(Prefixed::new(bytes, far), &server, hello.random).await.expect("accepts")
    };
    let name = web.identity();
    let (near, far) = tokio::join!(client.connect(near, &name, name.as_str()), accept);
    (near.expect("connects"), far)
}

async fn ends(end: JoinHandle<End>) -> End {
    tokio::time::timeout(Duration::from_secs(20), end).await.expect("in time").expect("no panic")
}

async fn read_all(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.map(|_| all)
}

#[tokio::test]
async fn the_client_may_end_first_and_still_be_answered() {
    let Relayed { mut client, mut server, counters, end } = relayed().await;
    client.write_all(b"question").await.expect("writes");
    client.shutdown().await.expect("half closes");
    assert_eq!(read_all(&mut server).await.expect("reads"), b"question");
    server.write_all(b"answer").await.expect("writes");
    drop(server);
    assert_eq!(read_all(&mut client).await.expect("reads"), b"answer");
    let end = ends(end).await;
    assert_eq!((end.by, end.reason), (ClosedBy::Client, CloseReason::Finished));
    assert_eq!((counters.sent.load(Ordering::Relaxed), counters.received.load(Ordering::Relaxed)), (8, 6));
}

#[tokio::test]
async fn the_server_may_end_first_and_still_be_sent_to() {
    let Relayed { mut client, mut server, end, .. } = relayed().await;
    server.write_all(b"greeting").await.expect("writes");
    server.shutdown().await.expect("half closes");
    assert_eq!(read_all(&mut client).await.expect("reads"), b"greeting");
    client.write_all(b"more").await.expect("writes");
    drop(client);
    assert_eq!(read_all(&mut server).await.expect("reads"), b"more");
    let end = ends(end).await;
    assert_eq!((end.by, end.reason), (ClosedBy::Server, CloseReason::Finished));
}

#[tokio::test]
async fn a_reset_of_either_side_reaches_the_other_as_a_reset() {
    for by in [ClosedBy::Client, ClosedBy::Server] {
        let Relayed { client, server, end, .. } = relayed().await;
        let (gone, mut stays) = if by == ClosedBy::Client { (client, server) } else { (server, client) };
        close_with_reset(&gone);
        drop(gone);
        let end = ends(end).await;
        assert_eq!((end.by, end.reason), (by, CloseReason::Reset));
        assert_eq!(stays.read(&mut [0; 8]).await.map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset));
    }
}

#[tokio::test]
async fn what_a_server_said_before_it_went_away_still_arrives() {
    let Relayed { mut client, mut server, end, .. } = relayed().await;
    // A server that refuses an upload: it answers and closes with bytes unread, which resets the connection.
    client.write_all(b"begin").await.expect("writes");
    server.read_exact(&mut [0; 5]).await.expect("reads");
    server.write_all(b"413").await.expect("writes");
    let mut got = [0; 3];
    client.read_exact(&mut got).await.expect("the answer");
    assert_eq!(&got, b"413");
    client.write_all(b"more").await.expect("writes");
    server.peek(&mut [0; 4]).await.expect("arrives");
    drop(server);
    assert_eq!(client.read(&mut [0; 8]).await.map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset));
    assert_eq!(ends(end).await.reason, CloseReason::Reset);
}

#[tokio::test]
async fn a_tls_stream_that_is_cut_becomes_a_reset_and_an_orderly_one_an_end() {
    let mesh = Mesh::new();
    for orderly in [true, false] {
        let (mut client, at_proxy) = pair().await;
        let (to_server, mut server) = tls_pair(&mesh).await;
        let (_, end) = run(at_proxy, to_server);
        server.write_all(b"half of it").await.expect("writes");
        server.flush().await.expect("flushes");
        let mut got = [0; 10];
        client.read_exact(&mut got).await.expect("reads");
        if orderly {
            server.shutdown().await.expect("closes");
        }
        // The socket ends in order in both cases; only `close_notify` tells them apart.
        drop(server);
        client.shutdown().await.ok();
        let rest = client.read(&mut [0; 8]).await.map_err(|e| e.kind());
        let end = ends(end).await;
        if orderly {
            assert_eq!((rest, end.reason), (Ok(0), CloseReason::Finished));
        } else {
            assert_eq!(rest, Err(ErrorKind::ConnectionReset));
            assert_eq!((end.by, end.reason), (ClosedBy::Server, CloseReason::Truncated));
        }
    }
}

#[tokio::test]
async fn half_close_passes_through_tls_both_ways() {
    let mesh = Mesh::new();
    // Application, outbound proxy, TLS, inbound proxy, application.
    let (mut client, at_outbound) = pair().await;
    let (to_inbound, at_inbound) = tls_pair(&mesh).await;
    let (to_server, mut server) = pair().await;
    let (_, outbound) = run(at_outbound, to_inbound);
    let (_, inbound) = run(at_inbound, to_server);
    client.write_all(b"question").await.expect("writes");
    client.shutdown().await.expect("half closes");
    assert_eq!(read_all(&mut server).await.expect("reads"), b"question");
    server.write_all(b"answer").await.expect("writes");
    server.shutdown().await.expect("closes");
    assert_eq!(read_all(&mut client).await.expect("reads"), b"answer");
    for end in [ends(outbound).await, ends(inbound).await] {
        assert_eq!((end.by, end.reason), (ClosedBy::Client, CloseReason::Finished));
    }
}

#[tokio::test]
async fn a_reset_passes_through_tls() {
    let mesh = Mesh::new();
    let (client, at_outbound) = pair().await;
    let (to_inbound, at_inbound) = tls_pair(&mesh).await;
    let (to_server, mut server) = pair().await;
    let (_, outbound) = run(at_outbound, to_inbound);
    let (_, inbound) = run(at_inbound, to_server);
    close_with_reset(&client);
    drop(client);
    assert_eq!(server.read(&mut [0; 8]).await.map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset));
    assert_eq!(ends(outbound).await.reason, CloseReason::Reset);
    assert!(matches!(ends(inbound).await.reason, CloseReason::Reset | CloseReason::Truncated));
}

#[tokio::test]
async fn a_slow_reader_holds_the_writer_back() {
    let Relayed { client, mut server, counters, end } = relayed().await;
    // Nobody reads at the server: the client can push into socket buffers and one chunk of the relay, and no further.
    let mut pushed = 0_usize;
    let block = vec![7; CHUNK];
    loop {
        match tokio::time::timeout(Duration::from_millis(300), client.writable()).await {
            Err(_) => break,
            Ok(ready) => ready.expect("open"),
        }
        match client.try_write(&block) {
            Ok(written) => pushed += written,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(pushed < 64 << 20, "no backpressure after 64 MiB");
    }
    let mut drained = 0;
    let mut sink = vec![0; 1 << 16];
    let mut sum = 0_u64;
    while drained < pushed {
        let read = server.read(&mut sink).await.expect("reads");
        drained += read;
        sum += sink[..read].iter().map(|byte| u64::from(*byte)).sum::<u64>();
    }
    assert_eq!((drained, sum), (pushed, 7 * pushed as u64));
    until("all is counted", || counters.sent.load(Ordering::Relaxed) == pushed as u64).await;
    drop((client, server));
    ends(end).await;
}

#[tokio::test]
async fn many_megabytes_arrive_as_they_were_sent_through_tls() {
    let mesh = Mesh::new();
    let (mut client, at_outbound) = pair().await;
    let (to_inbound, at_inbound) = tls_pair(&mesh).await;
    let (to_server, mut server) = pair().await;
    let (_, outbound) = run(at_outbound, to_inbound);
    let (_, inbound) = run(at_inbound, to_server);
    let total: usize = 24 << 20;
    let send = async {
        let mut block = vec![0_u8; 70_001];
        let mut sent = 0;
        while sent < total {
            let part = block.len().min(total - sent);
            for (offset, byte) in block.iter_mut().enumerate() {
                *byte = ((sent + offset) % 251) as u8;
            }
            client.write_all(&block[..part]).await.expect("writes");
            sent += part;
        }
        client.shutdown().await.expect("ends");
        let mut reply = [0; 2];
        client.read_exact(&mut reply).await.expect("reads");
        reply
    };
    let receive = async {
        let mut block = vec![0_u8; 65_536];
        let mut got = 0;
        loop {
            let read = server.read(&mut block).await.expect("reads");
            if read == 0 {
                break;
            }
            for (offset, byte) in block[..read].iter().enumerate() {
                assert_eq!(*byte, ((got + offset) % 251) as u8, "at {}", got + offset);
            }
            got += read;
        }
        server.write_all(b"ok").await.expect("writes");
        drop(server);
        got
    };
    let (reply, got) = tokio::join!(send, receive);
    assert_eq!((&reply, got), (b"ok", total));
    ends(outbound).await;
    ends(inbound).await;
}
