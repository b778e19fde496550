//! The expressions of nf_tables that our rules consist of, and their attributes (linux/netfilter/nf_tables.h).

use crate::netlink::{Attributes, Read};

/// One step of a rule, working on registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expression {
    /// Loads a property of the packet or its socket.
    Meta { key: u32, to: u32 },
    /// Loads a property of the connection.
    Ct { key: u32, to: u32 },
    /// Loads bytes of a header.
    Payload { base: u32, offset: u32, length: u32, to: u32 },
    /// Loads a random or counted number.
    Number { kind: u32, modulus: u32, to: u32 },
    /// `to = from & mask`.
    And { from: u32, to: u32, mask: Vec<u8> },
    /// Ends the rule unless the register compares.
    Compare { register: u32, operation: u32, value: Vec<u8> },
    /// Ends the rule unless the register lies between.
    Range { register: u32, first: Vec<u8>, last: Vec<u8> },
    /// Loads a constant.
    Value { to: u32, value: Vec<u8> },
    /// Decides.
    Verdict { code: i32, chain: Option<String> },
    /// Sends to a port of this machine, the port being in the register.
    Redirect { port: u32 },
    /// Sends to the address and port in the registers.
    Dnat { family: u32, address: u32, port: u32 },
    /// Takes the outgoing interface's address as source.
    Masquerade,
    /// Refuses.
    Reject { kind: u32, code: u32 },
}

impl Expression {
    /// As an element of `NFTA_RULE_EXPRESSIONS`.
    pub(crate) fn write(&self) -> Attributes {
        let empty = Attributes::default;
        let data = |bytes: &[u8]| empty().bytes(DATA_VALUE, bytes);
        let (name, attributes) = match self {
            Self::Meta { key, to } => ("meta", empty().number(1, *to).number(2, *key)),
            Self::Ct { key, to } => ("ct", empty().number(1, *to).number(2, *key)),
            Self::Payload { base, offset, length, to } => {
                ("payload", empty().number(1, *to).number(2, *base).number(3, *offset).number(4, *length))
            }
            Self::Number { kind, modulus, to } => {
                ("numgen", empty().number(1, *to).number(2, *modulus).number(3, *kind).number(4, 0))
            }
            Self::And { from, to, mask } => {
                let nothing = vec![0; mask.len()];
                let all = empty().number(1, *from).number(2, *to).number(3, mask.len() as u32);
                ("bitwise", all.nested(4, &data(mask)).nested(5, &data(&nothing)))
            }
            Self::Compare { register, operation, value } => {
                ("cmp", empty().number(1, *register).number(2, *operation).nested(3, &data(value)))
            }
            Self::Range { register, first, last } => (
                "range",
                empty().number(1, *register).number(2, 0).nested(3, &data(first)).nested(4, &data(last)),
            ),
            Self::Value { to, value } => ("immediate", empty().number(1, *to).nested(2, &data(value))),
            Self::Verdict { code, chain } => {
                let verdict = empty().bytes(1, &code.to_be_bytes());
                let verdict = match chain {
                    Some(chain) => verdict.text(2, chain),
                    None => verdict,
                };
                (
                    "immediate",
                    empty().number(1, VERDICT_REGISTER).nested(2, &empty().nested(DATA_VERDICT, &verdict)),
                )
            }
            Self::Redirect { port } => ("redir", empty().number(1, *port)),
            Self::Dnat { family, address, port } => {
                let all = empty().number(1, NAT_DESTINATION).number(2, *family);
                ("nat", all.number(3, *address).number(5, *port))
            }
            Self::Masquerade => ("masq", empty()),
            Self::Reject { kind, code } => ("reject", empty().number(1, *kind).bytes(2, &[*code as u8])),
        };
        empty().text(1, name).nested(2, &attributes)
    }

    /// The reverse; `None` for what [`Self::write`] would never write.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let name = Read::text(bytes, 1)?;
        let inner = Read::find(bytes, 2).unwrap_or_default();
        let number = |kind| Read::number(inner, kind);
        let data = |kind| Some(Read::find(Read::find(inner, kind)?, DATA_VALUE)?.to_vec());
        Some(match name {
            "meta" => Self::Meta { to: number(1)?, key: number(2)? },
            "ct" => Self::Ct { to: number(1)?, key: number(2)? },
            "payload" => {
                Self::Payload { to: number(1)?, base: number(2)?, offset: number(3)?, length: number(4)? }
            }
            "numgen" if number(4).unwrap_or(0) == 0 => {
                Self::Number { to: number(1)?, modulus: number(2)?, kind: number(3)? }
            }
            "bitwise" if data(5)?.iter().all(|b| *b == 0) => {
                Self::And { from: number(1)?, to: number(2)?, mask: data(4)? }
            }
            "cmp" => Self::Compare { register: number(1)?, operation: number(2)?, value: data(3)? },
            "range" if number(2)? == EQUAL => {
                Self::Range { register: number(1)?, first: data(3)?, last: data(4)? }
            }
            "immediate" => {
                if let Some(value) = data(2) {
                    Self::Value { to: number(1)?, value }
                } else {
                    let verdict = Read::find(Read::find(inner, 2)?, DATA_VERDICT)?;
                    let code = i32::from_be_bytes(Read::find(verdict, 1)?.try_into().ok()?);
                    Self::Verdict { code, chain: Read::text(verdict, 2).map(str::to_owned) }
                }
            }
            "redir" => Self::Redirect { port: number(1)? },
            "nat" if number(1)? == NAT_DESTINATION => {
                Self::Dnat { family: number(2)?, address: number(3)?, port: number(5)? }
            }
            "masq" => Self::Masquerade,
            "reject" => {
                let code = Read::find(inner, 2).and_then(|code| code.first().copied()).unwrap_or(0);
                Self::Reject { kind: number(1)?, code: u32::from(code) }
            }
            _ => return None,
        })
    }
}

/// Comparisons (`NFT_CMP_*`, and `NFT_RANGE_EQ`).
pub(crate) const EQUAL: u32 = 0;
pub(crate) const NOT_EQUAL: u32 = 1;
pub(crate) const AT_MOST: u32 = 3;
pub(crate) const AT_LEAST: u32 = 5;

/// Registers of 16 bytes each.
pub(crate) const REGISTER_1: u32 = 1;
pub(crate) const REGISTER_2: u32 = 2;

/// `NFT_META_*`.
pub(crate) const META_MARK: u32 = 3;
pub(crate) const META_IN_NAME: u32 = 6;
pub(crate) const META_OUT_NAME: u32 = 7;
pub(crate) const META_UID: u32 = 10;
pub(crate) const META_FAMILY: u32 = 15;
pub(crate) const META_PROTOCOL: u32 = 16;

/// `NFT_CT_STATE` and the bit for a new connection in it.
pub(crate) const CT_STATE: u32 = 0;
pub(crate) const CT_NEW: u32 = 8;

/// `NFT_PAYLOAD_*_HEADER`.
pub(crate) const NETWORK_HEADER: u32 = 1;
pub(crate) const TRANSPORT_HEADER: u32 = 2;

/// `NFT_NG_RANDOM`.
pub(crate) const RANDOM: u32 = 1;

/// `NFT_REJECT_*` and the code for a closed port.
pub(crate) const REJECT_RESET: u32 = 1;
pub(crate) const REJECT_ICMPX: u32 = 2;
pub(crate) const PORT_UNREACHABLE: u32 = 1;

/// `NFT_JUMP`, `NFT_GOTO`, `NFT_RETURN`.
pub(crate) const JUMP: i32 = -3;
pub(crate) const GOTO: i32 = -4;
pub(crate) const RETURN: i32 = -5;

const VERDICT_REGISTER: u32 = 0;
const NAT_DESTINATION: u32 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
