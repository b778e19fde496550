//! Rules to expressions and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::expression::{
    AT_LEAST, AT_MOST, CT_NEW, CT_STATE, EQUAL, Expression, GOTO, JUMP, META_FAMILY, META_IN_NAME, META_MARK,
    META_OUT_NAME, META_PROTOCOL, META_UID, NETWORK_HEADER, NOT_EQUAL, PORT_UNREACHABLE, RANDOM, REGISTER_1,
    REGISTER_2, REJECT_ICMPX, REJECT_RESET, RETURN, TRANSPORT_HEADER,
};
use crate::ruleset::{Action, Family, Interface, Match, PortRange, Protocol, Rule};

/// The expressions of a rule.
pub(crate) fn encode(rule: &Rule) -> Vec<Expression> {
    let mut to = Vec::new();
    for one in &rule.matches {
        encode_match(one, &mut to);
    }
    encode_action(&rule.action, &mut to);
    to
}

/// The reverse; `None` for rules that this crate would not write.
pub(crate) fn decode(expressions: &[Expression]) -> Option<Rule> {
    let mut matches = Vec::new();
    let mut rest = expressions;
    loop {
        if let Some(action) = decode_action(rest) {
            return Some(Rule { matches, action });
        }
        let (one, after) = decode_match(rest)?;
        matches.push(one);
        rest = after;
    }
}

fn encode_match(one: &Match, to: &mut Vec<Expression>) {
    let mut meta = |key, value: &[u8]| to.extend([load(key), equal(value)]);
    match one {
        Match::Family(family) => meta(META_FAMILY, &[family_number(*family)]),
        Match::Protocol(protocol) => meta(META_PROTOCOL, &[protocol_number(*protocol)]),
        Match::Uid(uid) => meta(META_UID, &uid.to_ne_bytes()),
        Match::Mark(mark) => meta(META_MARK, &mark.to_ne_bytes()),
        Match::In(interface) => meta(META_IN_NAME, &interface.padded()),
        Match::Out(interface) => meta(META_OUT_NAME, &interface.padded()),
        Match::Port(protocol, ports) => {
            meta(META_PROTOCOL, &[protocol_number(*protocol)]);
            to.push(Expression::Payload { base: TRANSPORT_HEADER, offset: 2, length: 2, to: REGISTER_1 });
            let (first, last) = (ports.first().to_be_bytes(), ports.last().to_be_bytes());
            to.push(if first == last {
                equal(&first)
            } else {
                Expression::Range { register: REGISTER_1, first: first.to_vec(), last: last.to_vec() }
            });
        }
        Match::Source(net) => encode_net(net, true, to),
        Match::Destination(net) => encode_net(net, false, to),
        Match::NewConnection => to.extend([
            Expression::Ct { key: CT_STATE, to: REGISTER_1 },
            Expression::And { from: REGISTER_1, to: REGISTER_1, mask: CT_NEW.to_ne_bytes().to_vec() },
            Expression::Compare { register: REGISTER_1, operation: NOT_EQUAL, value: vec![0; 4] },
        ]),
        Match::OneIn(count) => to.extend([
            Expression::Number { kind: RANDOM, modulus: *count, to: REGISTER_1 },
            equal(&0_u32.to_ne_bytes()),
        ]),
    }
}

fn encode_net(net: &IpNet, source: bool, to: &mut Vec<Expression>) {
    let (family, offset, address, mask) = match net {
        IpNet::V4(net) => {
            let offset = if source { 12 } else { 16 };
            (Family::V4, offset, net.network().octets().to_vec(), net.netmask().octets().to_vec())
        }
        IpNet::V6(net) => {
            let offset = if source { 8 } else { 24 };
            (Family::V6, offset, net.network().octets().to_vec(), net.netmask().octets().to_vec())
        }
    };
    to.extend([load(META_FAMILY), equal(&[family_number(family)])]);
    to.push(Expression::Payload {
        base: NETWORK_HEADER,
        offset,
        length: address.len() as u32,
        to: REGISTER_1,
    });
    if net.prefix_len() < net.max_prefix_len() {
        to.push(Expression::And { from: REGISTER_1, to: REGISTER_1, mask });
    }
    to.push(equal(&address));
}

fn encode_action(action: &Action, to: &mut Vec<Expression>) {
    let verdict = |code, chain: Option<&String>| Expression::Verdict { code, chain: chain.cloned() };
    let value = |to, value: &[u8]| Expression::Value { to, value: value.to_vec() };
    match action {
        Action::Return => to.push(verdict(RETURN, None)),
        Action::Jump(chain) => to.push(verdict(JUMP, Some(chain))),
        Action::Goto(chain) => to.push(verdict(GOTO, Some(chain))),
        Action::Redirect(port) => {
            to.extend([value(REGISTER_1, &port.to_be_bytes()), Expression::Redirect { port: REGISTER_1 }]);
        }
        Action::Dnat(address) => {
            let (family, bytes) = match address.ip() {
                IpAddr::V4(ip) => (Family::V4, ip.octets().to_vec()),
                IpAddr::V6(ip) => (Family::V6, ip.octets().to_vec()),
            };
            let family = u32::from(family_number(family));
            to.extend([value(REGISTER_1, &bytes), value(REGISTER_2, &address.port().to_be_bytes())]);
            to.push(Expression::Dnat { family, address: REGISTER_1, port: REGISTER_2 });
        }
        Action::Masquerade => to.push(Expression::Masquerade),
        Action::ResetTcp => to.push(Expression::Reject { kind: REJECT_RESET, code: 0 }),
        Action::Unreachable => to.push(Expression::Reject { kind: REJECT_ICMPX, code: PORT_UNREACHABLE }),
    }
}

fn decode_match(from: &[Expression]) -> Option<(Match, &[Expression])> {
    use Expression::{And, Compare, Ct, Meta, Number, Payload, Range};
    match from {
        [
            Ct { key: CT_STATE, .. },
            And { mask, .. },
            Compare { operation: NOT_EQUAL, value, .. },
            rest @ ..,
        ] if mask[..] == CT_NEW.to_ne_bytes() && value[..] == [0; 4] => Some((Match::NewConnection, rest)),
        [Number { kind: RANDOM, modulus, .. }, Compare { operation: EQUAL, value, .. }, rest @ ..]
            if value[..] == [0; 4] =>
        {
            Some((Match::OneIn(*modulus), rest))
        }
        [Meta { key, .. }, Compare { operation: EQUAL, value, .. }, rest @ ..] => match (*key, rest) {
            (META_FAMILY, [Payload { base: NETWORK_HEADER, offset, length, .. }, after @ ..]) => {
                decode_net(*offset, *length, after)
            }
            (META_FAMILY, _) => Some((Match::Family(read_family(*value.first()?)?), rest)),
            (META_PROTOCOL, [Payload { base: TRANSPORT_HEADER, offset: 2, length: 2, .. }, after @ ..]) => {
                let protocol = read_protocol(*value.first()?)?;
                let (first, last, after) = match after {
                    [Compare { operation: EQUAL, value, .. }, after @ ..] => (value, value, after),
                    // The second form is how some versions of `nft` write a range.
                    [Range { first, last, .. }, after @ ..]
                    | [
                        Compare { operation: AT_LEAST, value: first, .. },
                        Compare { operation: AT_MOST, value: last, .. },
                        after @ ..,
                    ] => (first, last, after),
                    _ => return None,
                };
                Some((Match::Port(protocol, PortRange::new(port(first)?, port(last)?)?), after))
            }
            (META_PROTOCOL, _) => Some((Match::Protocol(read_protocol(*value.first()?)?), rest)),
            (META_UID, _) => Some((Match::Uid(host(value)?), rest)),
            (META_MARK, _) => Some((Match::Mark(host(value)?), rest)),
            (META_IN_NAME, _) => Some((Match::In(interface(value)?), rest)),
            (META_OUT_NAME, _) => Some((Match::Out(interface(value)?), rest)),
            _ => None,
        },
        _ => None,
    }
}

/// After the payload expression: an optional mask and the comparison.
fn decode_net(offset: u32, length: u32, from: &[Expression]) -> Option<(Match, &[Expression])> {
    let (mask, value, rest) = match from {
        [Expression::And { mask, .. }, Expression::Compare { operation: EQUAL, value, .. }, rest @ ..] => {
            (Some(mask), value, rest)
        }
        [Expression::Compare { operation: EQUAL, value, .. }, rest @ ..] => (None, value, rest),
        _ => return None,
    };
    let (net, source) = match (offset, length) {
        // `nft` loads fewer bytes instead of masking where the prefix ends at a byte.
        (12 | 16, 1..=4) => {
            let mut address = [0; 4];
            address.get_mut(..value.len())?.copy_from_slice(value);
            let prefix = prefix_length(mask, length)?;
            (IpNet::V4(Ipv4Net::new(Ipv4Addr::from(address), prefix).ok()?), offset == 12)
        }
        (8 | 24, 1..=16) => {
            let mut address = [0; 16];
            address.get_mut(..value.len())?.copy_from_slice(value);
            let prefix = prefix_length(mask, length)?;
            (IpNet::V6(Ipv6Net::new(Ipv6Addr::from(address), prefix).ok()?), offset == 8)
        }
        _ => return None,
    };
    Some((if source { Match::Source(net) } else { Match::Destination(net) }, rest))
}

fn decode_action(from: &[Expression]) -> Option<Action> {
    match from {
        [Expression::Verdict { code: RETURN, .. }] => Some(Action::Return),
        [Expression::Verdict { code: JUMP, chain: Some(chain) }] => Some(Action::Jump(chain.clone())),
        [Expression::Verdict { code: GOTO, chain: Some(chain) }] => Some(Action::Goto(chain.clone())),
        [Expression::Value { value, .. }, Expression::Redirect { .. }] => {
            Some(Action::Redirect(port(value)?))
        }
        [
            Expression::Value { to: one, value: first },
            Expression::Value { value: second, .. },
            Expression::Dnat { address, .. },
        ] => {
            let (address, number) = if one == address { (first, second) } else { (second, first) };
            let ip = match address.len() {
                4 => IpAddr::from(<[u8; 4]>::try_from(&address[..]).ok()?),
                _ => IpAddr::from(<[u8; 16]>::try_from(&address[..]).ok()?),
            };
            Some(Action::Dnat(SocketAddr::new(ip, port(number)?)))
        }
        [Expression::Masquerade] => Some(Action::Masquerade),
        [Expression::Reject { kind: REJECT_RESET, .. }] => Some(Action::ResetTcp),
        [Expression::Reject { kind: REJECT_ICMPX, code: PORT_UNREACHABLE }] => Some(Action::Unreachable),
        _ => None,
    }
}

fn load(key: u32) -> Expression {
    Expression::Meta { key, to: REGISTER_1 }
}

fn equal(value: &[u8]) -> Expression {
    Expression::Compare { register: REGISTER_1, operation: EQUAL, value: value.to_vec() }
}

fn prefix_length(mask: Option<&Vec<u8>>, length: u32) -> Option<u8> {
    let Some(mask) = mask else { return u8::try_from(length * 8).ok() };
    let ones: u32 = mask.iter().map(|byte| byte.leading_ones()).sum();
    // A mask with holes is no prefix.
    let solid = mask.iter().map(|byte| byte.count_ones()).sum::<u32>() == ones
        && mask.iter().skip_while(|byte| **byte == 0xff).skip(1).all(|byte| *byte == 0);
    solid.then(|| u8::try_from(ones).ok()).flatten()
}

fn port(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn host(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn interface(bytes: &[u8]) -> Option<Interface> {
    let end = bytes.iter().position(|b| *b == 0)?;
    Interface::new(std::str::from_utf8(bytes.get(..end)?).ok()?)
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn read_family(number: u8) -> Option<Family> {
    [Family::V4, Family::V6].into_iter().find(|family| family_number(*family) == number)
}

/// `IPPROTO_TCP`, `IPPROTO_UDP`.
fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

fn read_protocol(number: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp].into_iter().find(|protocol| protocol_number(*protocol) == number)
}
