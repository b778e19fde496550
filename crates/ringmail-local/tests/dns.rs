//! What the name server answers.

use std::net::{IpAddr, Ipv4Addr};

use ringmail_local::dns::{EndpointRecord, PodRecord, PortRecord, ServiceRecord, Transport, Zone, answer};
use simple_dns::rdata::{OPT, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn port(name: &str, port: u16) -> PortRecord {
    PortRecord { name: Some(name.into()), protocol: "tcp".into(), port }
}

fn zone() -> Zone {
    let web = ServiceRecord {
        namespace: "shop".into(),
        name: "web".into(),
        addresses: vec![ip("10.143.0.40")],
        ports: vec![port("http", 80)],
        endpoints: Vec::new(),
    };
    let endpoint = |n: u8| EndpointRecord {
        addresses: vec![ip(&format!("10.142.0.{n}"))],
        hostname: Some(format!("db-{n}")),
        ports: vec![port("sql", 5432)],
    };
    let db = ServiceRecord {
        namespace: "shop".into(),
        name: "db".into(),
        addresses: Vec::new(),
        ports: vec![port("sql", 5432)],
        endpoints: vec![endpoint(5), endpoint(6)],
    };
    let empty = ServiceRecord { namespace: "shop".into(), name: "empty".into(), ..ServiceRecord::default() };
    let many = ServiceRecord {
        namespace: "shop".into(),
        name: "many".into(),
        endpoints: (1..=100)
            .map(|n| EndpointRecord {
                addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 142, 9, n))],
                hostname: None,
                ports: Vec::new(),
            })
            .collect(),
        ..ServiceRecord::default()
    };
    let pods = [PodRecord { namespace: "shop".into(), addresses: vec![ip("10.142.0.5")] }];
    Zone::new("cluster.local", &[web, db, empty, many], &pods, &["shop".into(), "quiet".into()])
}

struct Reply {
    code: RCODE,
    answers: Vec<String>,
    additional: usize,
    authority: usize,
    authoritative: bool,
    truncated: bool,
    ttls: Vec<u32>,
}

fn ask_over(name: &str, kind: TYPE, transport: Transport, udp_size: Option<u16>) -> Reply {
    let mut query = Packet::new_query(7);
    query.set_flags(PacketFlag::RECURSION_DESIRED);
    query.questions.push(Question::new(
        Name::new(name).unwrap(),
        QTYPE::TYPE(kind),
        QCLASS::CLASS(CLASS::IN),
        false,
    ));
    if let Some(size) = udp_size {
        *query.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: size, version: 0 });
    }
    let zone = zone();
    let bytes = answer(&zone, &query.build_bytes_vec().unwrap(), transport).unwrap();
    if transport == Transport::Udp {
        assert!(bytes.len() <= usize::from(udp_size.unwrap_or(512).max(512)), "{} bytes", bytes.len());
    }
    let reply = Packet::parse(&bytes).unwrap();
    assert_eq!(reply.id(), 7);
    assert!(reply.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_DESIRED));
    let mut answers: Vec<String> = reply
        .answers
        .iter()
        .map(|record| match &record.rdata {
            RData::A(a) => Ipv4Addr::from_bits(a.address).to_string(),
            RData::SRV(srv) => format!("{}:{}", srv.target, srv.port),
            RData::PTR(ptr) => ptr.0.to_string(),
            RData::SOA(_) => "soa".to_owned(),
            other => format!("{other:?}"),
        })
        .collect();
    answers.sort();
    Reply {
        code: reply.rcode(),
        answers,
        additional: reply.additional_records.len(),
        authority: reply.name_servers.len(),
        authoritative: reply.has_flags(PacketFlag::AUTHORITATIVE_ANSWER),
        truncated: reply.has_flags(PacketFlag::TRUNCATION),
        ttls: reply.answers.iter().map(|r| r.ttl).collect(),
    }
}

fn ask(name: &str, kind: TYPE) -> Reply {
    ask_over(name, kind, Transport::Udp, None)
}

#[test]
fn a_service_has_its_address_whatever_the_case() {
    for name in ["web.shop.svc.cluster.local", "WEB.Shop.svc.cluster.LOCAL"] {
        let reply = ask(name, TYPE::A);
        assert_eq!((reply.code, reply.answers.as_slice()), (RCODE::NoError, &["10.143.0.40".to_owned()][..]));
        assert!(reply.authoritative);
        assert_eq!(reply.ttls, [5]);
    }
}

#[test]
fn a_headless_service_has_its_pods_and_their_names() {
    assert_eq!(ask("db.shop.svc.cluster.local", TYPE::A).answers, ["10.142.0.5", "10.142.0.6"]);
    assert_eq!(ask("db-6.db.shop.svc.cluster.local", TYPE::A).answers, ["10.142.0.6"]);
    assert_eq!(ask("10-142-9-1.many.shop.svc.cluster.local", TYPE::A).answers, ["10.142.9.1"]);
    assert_eq!(ask("10-142-0-5.shop.pod.cluster.local", TYPE::A).answers, ["10.142.0.5"]);
    assert_eq!(ask("10-142-0-6.shop.pod.cluster.local", TYPE::A).code, RCODE::NameError);
}

#[test]
fn ports_are_found_by_srv_and_names_by_ptr() {
    let reply = ask("_http._tcp.web.shop.svc.cluster.local", TYPE::SRV);
    assert_eq!(reply.answers, ["web.shop.svc.cluster.local:80"]);
    assert_eq!(reply.additional, 1);
    let reply = ask("_sql._tcp.db.shop.svc.cluster.local", TYPE::SRV);
    assert_eq!(reply.answers, ["db-5.db.shop.svc.cluster.local:5432", "db-6.db.shop.svc.cluster.local:5432"]);
    assert_eq!(ask("40.0.143.10.in-addr.arpa", TYPE::PTR).answers, ["web.shop.svc.cluster.local"]);
    assert_eq!(ask("5.0.142.10.in-addr.arpa", TYPE::PTR).answers, ["db-5.db.shop.svc.cluster.local"]);
}

#[test]
fn no_such_name_and_no_such_record_are_told_apart() {
    for name in [
        "nothing.shop.svc.cluster.local",
        "web.other.svc.cluster.local",
        "example.com",
        "web.shop.svc.cluster.local.shop.svc.cluster.local",
    ] {
        let reply = ask(name, TYPE::A);
        assert_eq!(reply.code, RCODE::NameError, "{name}");
        assert_eq!(reply.answers, Vec::<String>::new());
    }
    for (name, kind) in [
        ("web.shop.svc.cluster.local", TYPE::AAAA),
        ("empty.shop.svc.cluster.local", TYPE::A),
        ("shop.svc.cluster.local", TYPE::A),
        ("quiet.svc.cluster.local", TYPE::A),
        ("_tcp.web.shop.svc.cluster.local", TYPE::A),
        ("cluster.local", TYPE::A),
    ] {
        let reply = ask(name, kind);
        assert_eq!(reply.code, RCODE::NoError, "{name}");
        assert_eq!(reply.answers, Vec::<String>::new(), "{name}");
        assert_eq!(reply.authority, 1, "{name}: for how long the no holds");
    }
}

#[test]
fn a_long_answer_is_cut_over_udp_and_whole_over_tcp() {
    let name = "many.shop.svc.cluster.local";
    let cut = ask_over(name, TYPE::A, Transport::Udp, None);
    assert!(cut.truncated && cut.answers.is_empty());
    assert!(ask_over(name, TYPE::A, Transport::Udp, Some(1232)).truncated);
    let whole = ask_over(name, TYPE::A, Transport::Tcp, None);
    assert!(!whole.truncated);
    assert_eq!(whole.answers.len(), 100);
}

#[test]
fn what_is_no_query_gets_no_answer_or_an_error() {
    let zone = zone();
    assert!(answer(&zone, b"short", Transport::Udp).is_none());
    let reply = Packet::new_reply(1).build_bytes_vec().unwrap();
    assert!(answer(&zone, &reply, Transport::Udp).is_none());
    let empty = Packet::new_query(1).build_bytes_vec().unwrap();
    let reply = answer(&zone, &empty, Transport::Udp).unwrap();
    assert_eq!(Packet::parse(&reply).unwrap().rcode(), RCODE::FormatError);
    let mut garbage = vec![0xff; 40];
    garbage[2] = 0x01;
    let reply = answer(&zone, &garbage, Transport::Udp).unwrap();
    assert_ne!(Packet::parse(&reply).unwrap().rcode(), RCODE::NoError);
}
