//! From a query to its reply; no I/O.

use std::net::IpAddr;

use rand::seq::SliceRandom as _;
use simple_dns::rdata::{A, AAAA, OPT, PTR, RData, SOA, SRV};
use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE,
};

use super::TTL;
use super::zone::{Found, Records, Zone};

/// How a query came: UDP replies have a limit, after which the client asks again over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// At most what the client announced, 512 bytes if nothing.
    Udp,
    /// At most 65,535 bytes.
    Tcp,
}

/// The reply to a query; `None` where the sender is to get none (what came is no query).
pub fn answer(zone: &Zone, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    if query.len() < HEADER {
        return None;
    }
    // A reply that is answered by a reply could go on for ever.
    if query[2] & 0x80 != 0 {
        return None;
    }
    let Ok(packet) = Packet::parse(query) else {
        return failed(u16::from_be_bytes([query[0], query[1]]), RCODE::FormatError);
    };
    if packet.opcode() != OPCODE::StandardQuery {
        return failed(packet.id(), RCODE::NotImplemented);
    }
    let [question] = packet.questions.as_slice() else {
        return failed(packet.id(), RCODE::FormatError);
    };

    let mut reply = Packet::new_reply(packet.id());
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if packet.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    let limit = match (transport, packet.opt()) {
        (Transport::Tcp, _) => usize::from(u16::MAX),
        (Transport::Udp, None) => 512,
        (Transport::Udp, Some(opt)) => usize::from(opt.udp_packet_size.clamp(512, LARGEST_UDP)),
    };
    if packet.opt().is_some() {
        *reply.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: LARGEST_UDP, version: 0 });
    }
    reply.questions.push(question.clone());
    fill(&mut reply, zone, question);

    let bytes = reply.build_bytes_vec_compressed().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    reply.answers.clear();
    reply.name_servers.clear();
    reply.additional_records.clear();
    reply.set_flags(PacketFlag::TRUNCATION);
    reply.build_bytes_vec_compressed().ok()
}

fn fill<'a>(reply: &mut Packet<'a>, zone: &'a Zone, question: &Question<'a>) {
    let name = question.qname.to_string().to_ascii_lowercase();
    let ours = zone.holds(&name);
    let found = zone.find(&name);
    if ours || matches!(found, Found::Name(_)) {
        reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
    }
    let in_class = matches!(question.qclass, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY);
    match found {
        Found::Name(records) if in_class => {
            records_for(reply, zone, question, records);
        }
        Found::Name(_) => {}
        // Names outside the mesh do not exist for its pods: a clear no instead of a wait for another server.
        Found::Nothing => *reply.rcode_mut() = RCODE::NameError,
    }
    if reply.answers.is_empty() && ours {
        reply.name_servers.extend(authority(zone));
    }
}

fn records_for<'a>(reply: &mut Packet<'a>, zone: &'a Zone, question: &Question<'a>, records: &'a Records) {
    let asks = |kind: TYPE| question.qtype == QTYPE::ANY || question.qtype == QTYPE::TYPE(kind);
    let record = |data: RData<'a>| ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data);
    let mut addresses: Vec<RData<'a>> = records
        .addresses
        .iter()
        .filter(|address| if address.is_ipv4() { asks(TYPE::A) } else { asks(TYPE::AAAA) })
        .map(|address| address_data(*address))
        .collect();
    // Clients take the first one; each gets its chance.
    addresses.shuffle(&mut rand::rng());
    reply.answers.extend(addresses.into_iter().map(record));
    if asks(TYPE::PTR) {
        for pointer in &records.pointers {
            if let Ok(name) = Name::new(pointer) {
                reply.answers.push(record(RData::PTR(PTR(name))));
            }
        }
    }
    if asks(TYPE::SRV) {
        for (port, target) in &records.services {
            let Ok(name) = Name::new(target) else { continue };
            reply.answers.push(record(RData::SRV(SRV {
                priority: 0,
                weight: 100,
                port: *port,
                target: name.clone(),
            })));
            if let Found::Name(found) = zone.find(target) {
                let more = found.addresses.iter().map(|address| address_data(*address));
                let more = more.map(|data| ResourceRecord::new(name.clone(), CLASS::IN, TTL, data));
                reply.additional_records.extend(more);
            }
        }
    }
    let apex = question.qname.to_string().eq_ignore_ascii_case(zone.domain());
    if apex && asks(TYPE::SOA) {
        reply.answers.extend(authority(zone));
    }
}

fn address_data<'a>(address: IpAddr) -> RData<'a> {
    match address {
        IpAddr::V4(v4) => RData::A(A { address: v4.to_bits() }),
        IpAddr::V6(v6) => RData::AAAA(AAAA { address: v6.to_bits() }),
    }
}

/// The record that says for how long a "no" may be kept (RFC 2308).
fn authority(zone: &Zone) -> Option<ResourceRecord<'_>> {
    let name = Name::new(zone.domain()).ok()?;
    let data = SOA {
        mname: name.clone(),
        rname: name.clone(),
        serial: 1,
        refresh: 7200,
        retry: 1800,
        expire: 86400,
        minimum: TTL,
    };
    Some(ResourceRecord::new(name, CLASS::IN, TTL, RData::SOA(data)))
}

fn failed(id: u16, code: RCODE) -> Option<Vec<u8>> {
    let mut reply = Packet::new_reply(id);
    *reply.rcode_mut() = code;
    reply.build_bytes_vec().ok()
}

/// Bytes of a message's header.
const HEADER: usize = 12;

/// What passes every link without fragments (DNS flag day 2020).
const LARGEST_UDP: u16 = 1232;
