//! Tables into the kernel and out of it, in the calling thread's network namespace.

use crate::encode::{decode, encode};
use crate::error::RedirectError;
use crate::expression::Expression;
use crate::netlink::{APPEND, Attributes, CREATE, Read, Request, Socket};
use crate::ruleset::{Base, Chain, Hook, Kind, Rule, Table};

/// Replaces the table by this one, or creates it; connections that stand are not touched.
pub(crate) fn replace(table: &Table) -> Result<(), RedirectError> {
    let mut requests = vec![create_table(&table.name), delete_table(&table.name), create_table(&table.name)];
    requests.extend(table.chains.iter().map(|chain| create_chain(&table.name, chain)));
    for chain in &table.chains {
        requests.extend(chain.rules.iter().map(|rule| create_rule(&table.name, &chain.name, rule)));
    }
    Socket::open()?.transact(&requests)
}

/// Removes the table. It is created first, so that its absence is no error.
pub(crate) fn remove(name: &str) -> Result<(), RedirectError> {
    Socket::open()?.transact(&[create_table(name), delete_table(name)])
}

/// Reads the table back, `None` where there is none.
pub(crate) fn list(name: &str) -> Result<Option<Table>, RedirectError> {
    let socket = Socket::open()?;
    let ask = |message| Request {
        message,
        flags: 0,
        attributes: Attributes::default(),
        object: format!("table `inet {name}`"),
    };
    let tables = socket.dump(&ask(GET_TABLE))?;
    if !tables.iter().any(|table| Read::text(table, TABLE_NAME) == Some(name)) {
        return Ok(None);
    }
    let mut chains: Vec<Chain> = Vec::new();
    for bytes in socket.dump(&ask(GET_CHAIN))? {
        if Read::text(&bytes, CHAIN_TABLE) == Some(name) {
            chains.push(read_chain(&bytes)?);
        }
    }
    for bytes in socket.dump(&ask(GET_RULE))? {
        if Read::text(&bytes, RULE_TABLE) == Some(name) {
            let chain =
                Read::text(&bytes, RULE_CHAIN).ok_or(RedirectError::Answer("a rule without a chain"))?;
            let rule = read_rule(&bytes)?;
            if let Some(chain) = chains.iter_mut().find(|one| one.name == chain) {
                chain.rules.push(rule);
            }
        }
    }
    Ok(Some(Table { name: name.to_owned(), chains }))
}

fn create_table(name: &str) -> Request {
    let attributes = Attributes::default().text(TABLE_NAME, name);
    Request { message: NEW_TABLE, flags: CREATE, attributes, object: format!("table `inet {name}`") }
}

fn delete_table(name: &str) -> Request {
    let attributes = Attributes::default().text(TABLE_NAME, name);
    Request { message: DELETE_TABLE, flags: 0, attributes, object: format!("table `inet {name}`") }
}

fn create_chain(table: &str, chain: &Chain) -> Request {
    let mut attributes = Attributes::default().text(CHAIN_TABLE, table).text(CHAIN_NAME, &chain.name);
    if let Some(base) = &chain.base {
        let hook = Attributes::default().number(HOOK_NUMBER, hook_number(base.hook));
        let hook = hook.bytes(HOOK_PRIORITY, &base.priority.to_be_bytes());
        attributes = attributes.nested(CHAIN_HOOK, &hook).number(CHAIN_POLICY, ACCEPT);
        attributes = attributes.text(CHAIN_TYPE, &base.kind.to_string());
    }
    let object = match &chain.base {
        Some(base) => format!("chain `{}` ({base})", chain.name),
        None => format!("chain `{}`", chain.name),
    };
    Request { message: NEW_CHAIN, flags: CREATE, attributes, object }
}

fn create_rule(table: &str, chain: &str, rule: &Rule) -> Request {
    let expressions = encode(rule);
    let list =
        expressions.iter().fold(Attributes::default(), |list, one| list.nested(LIST_ELEMENT, &one.write()));
    let attributes = Attributes::default().text(RULE_TABLE, table).text(RULE_CHAIN, chain);
    let attributes = attributes.nested(RULE_EXPRESSIONS, &list);
    Request {
        message: NEW_RULE,
        flags: CREATE | APPEND,
        attributes,
        object: format!("rule `{rule}` of chain `{chain}`"),
    }
}

fn read_chain(bytes: &[u8]) -> Result<Chain, RedirectError> {
    let name = Read::text(bytes, CHAIN_NAME).ok_or(RedirectError::Answer("a chain without a name"))?;
    let base = match Read::find(bytes, CHAIN_HOOK) {
        None => None,
        Some(hook) => {
            Some(read_base(bytes, hook).ok_or(RedirectError::Answer("a chain at an unknown hook"))?)
        }
    };
    Ok(Chain { name: name.to_owned(), base, rules: Vec::new() })
}

fn read_base(chain: &[u8], hook: &[u8]) -> Option<Base> {
    let number = Read::number(hook, HOOK_NUMBER)?;
    let kind = Read::text(chain, CHAIN_TYPE)?;
    let hooks = [Hook::Prerouting, Hook::Output, Hook::Postrouting];
    Some(Base {
        kind: [Kind::Nat, Kind::Filter].into_iter().find(|one| one.to_string() == kind)?,
        hook: hooks.into_iter().find(|hook| hook_number(*hook) == number)?,
        priority: i32::from_be_bytes(Read::find(hook, HOOK_PRIORITY)?.try_into().ok()?),
    })
}

fn read_rule(bytes: &[u8]) -> Result<Rule, RedirectError> {
    let list = Read::find(bytes, RULE_EXPRESSIONS).unwrap_or_default();
    let elements = Read::new(list).filter(|(kind, _)| *kind == LIST_ELEMENT);
    let expressions: Option<Vec<Expression>> =
        elements.map(|(_, element)| Expression::read(element)).collect();
    let rule = expressions.and_then(|expressions| decode(&expressions));
    rule.ok_or(RedirectError::Answer("the table has a rule that was not made by this program"))
}

/// `NF_INET_*`.
fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;
