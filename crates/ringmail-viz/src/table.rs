//! Edges as people and programs read them (features.md 2.1).

use std::fmt::Write as _;

use ringmail_api::viz::Edge;
use ringmail_identity::Identity;
use serde::Serialize;

/// The table with five columns. `color` puts the mark in bold green.
pub fn table(edges: &[Edge], color: bool) -> String {
    let header = ["SRC", "DST", "SRC_NS", "DST_NS", "SECURED"];
    let rows = edges.iter().map(|edge| {
        [&edge.src, &edge.dst, &edge.src_namespace, &edge.dst_namespace, &edge.secured].map(Clone::clone)
    });
    layout(header, rows.collect(), color)
}

/// The table with identities as proven on the wire, and what the handshakes agreed on.
pub fn wide(edges: &[Edge], color: bool) -> String {
    let header =
        ["SRC", "DST", "SRC_NS", "DST_NS", "CLIENT_ID", "SERVER_ID", "TLS", "CIPHER", "GROUP", "SECURED"];
    let rows = edges.iter().map(|edge| {
        [
            edge.src.clone(),
            edge.dst.clone(),
            edge.src_namespace.clone(),
            edge.dst_namespace.clone(),
            cell(short(&edge.client_id)),
            cell(short(&edge.server_id)),
            cell(edge.tls_versions.join(",")),
            cell(edge.ciphers.join(",")),
            cell(edge.groups.join(",")),
            edge.secured.clone(),
        ]
    });
    layout(header, rows.collect(), color)
}

/// An array of objects, indented by two.
pub fn json(edges: &[Edge]) -> Result<String, serde_json::Error> {
    let rows: Vec<_> = edges
        .iter()
        .map(|edge| JsonEdge {
            src: &edge.src,
            src_namespace: &edge.src_namespace,
            dst: &edge.dst,
            dst_namespace: &edge.dst_namespace,
            client_id: short(&edge.client_id),
            server_id: short(&edge.server_id),
            no_tls_reason: if is_secured(edge) { "" } else { &edge.secured },
            secured: is_secured(edge),
            reason: &edge.reason,
            connections: edge.connections,
            secured_connections: edge.secured_connections,
            tls_versions: &edge.tls_versions,
            ciphers: &edge.ciphers,
            groups: &edge.groups,
            ports: &edge.ports,
        })
        .collect();
    let mut text = serde_json::to_string_pretty(&rows)?;
    text.push('\n');
    Ok(text)
}

/// The keys in the order in which they are printed.
#[derive(Serialize)]
struct JsonEdge<'a> {
    src: &'a str,
    src_namespace: &'a str,
    dst: &'a str,
    dst_namespace: &'a str,
    client_id: String,
    server_id: String,
    no_tls_reason: &'a str,
    secured: bool,
    reason: &'a str,
    connections: u64,
    secured_connections: u64,
    tls_versions: &'a [String],
    ciphers: &'a [String],
    groups: &'a [String],
    ports: &'a [u32],
}

fn is_secured(edge: &Edge) -> bool {
    edge.secured == MARK && edge.connections > 0 && edge.secured_connections == edge.connections
}

/// `<sa>.<ns>` of each name.
fn short(ids: &str) -> String {
    let short = |id: &str| id.parse::<Identity>().map_or_else(|_| id.to_owned(), |id| id.short());
    ids.split(',').filter(|id| !id.is_empty()).map(short).collect::<Vec<_>>().join(",")
}

/// A cell that is never empty, so that columns can be counted.
fn cell(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

/// Columns left-justified to their widest cell with a gap of three; the last is padded to seven.
fn layout<const N: usize>(header: [&str; N], rows: Vec<[String; N]>, color: bool) -> String {
    let rows: Vec<[String; N]> = std::iter::once(header.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let last = column + 1 == N;
            let padding =
                if last { LAST_WIDTH } else { widths[column] + GAP }.saturating_sub(cell.chars().count());
            let cell = if last && color && cell == MARK {
                format!("\x1b[1;32m{MARK}\x1b[0m")
            } else {
                printable(cell)
            };
            let _ = write!(text, "{cell}{:padding$}", "");
        }
        text.push('\n');
    }
    text
}

/// Text that came over the network cannot steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

const MARK: &str = "√";
const GAP: usize = 3;
const LAST_WIDTH: usize = 7;

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(src: &str, dst: &str, secured: &str, reason: &str) -> Edge {
        let id = |sa: &str| format!("{sa}.demo.serviceaccount.identity.ringmail.cluster.local");
        let mutual = secured == MARK;
        let only = |text: &str| if mutual { vec![text.to_owned()] } else { Vec::new() };
        Edge {
            src: src.to_owned(),
            src_namespace: "demo".to_owned(),
            dst: dst.to_owned(),
            dst_namespace: "demo".to_owned(),
            client_id: if mutual { id(src) } else { String::new() },
            server_id: if mutual { id(dst) } else { String::new() },
            secured: secured.to_owned(),
            reason: reason.to_owned(),
            connections: 2,
            secured_connections: if mutual { 2 } else { 0 },
            tls_versions: only("TLSv1.3"),
            ciphers: only("TLS13_AES_128_GCM_SHA256"),
            groups: only("X25519MLKEM768"),
            ports: vec![8080],
        }
    }

    #[test]
    fn the_table_is_laid_out_to_the_blank() {
        let edges = [edge("bot", "web", "√", ""), edge("web", "voting", "√", "")];
        assert_eq!(
            table(&edges, false),
            "SRC   DST      SRC_NS   DST_NS   SECURED\n\
             bot   web      demo     demo     √      \n\
             web   voting   demo     demo     √      \n"
        );
    }

    #[test]
    fn wide_adds_identities_and_the_handshake_and_no_cell_is_empty() {
        let edges =
            [edge("bot", "web", "√", ""), edge("legacy", "web", "No TLS From Remote", "no_tls_from_remote")];
        assert_eq!(
            wide(&edges, false),
            "SRC      DST   SRC_NS   DST_NS   CLIENT_ID   SERVER_ID   TLS       CIPHER                     GROUP            SECURED\n\
             bot      web   demo     demo     bot.demo    web.demo    TLSv1.3   TLS13_AES_128_GCM_SHA256   X25519MLKEM768   √      \n\
             legacy   web   demo     demo     -           -           -         -                          -                No TLS From Remote\n"
        );
    }

    #[test]
    fn the_mark_is_green_on_a_terminal_only_and_keeps_its_width() {
        let edges = [edge("bot", "web", "√", "")];
        assert!(table(&edges, true).ends_with("\x1b[1;32m√\x1b[0m      \n"));
        assert!(!table(&edges, false).contains('\x1b'));
        let sly = [Edge { src: "\x1b[2J".to_owned(), ..edge("bot", "web", "√", "") }];
        assert!(!table(&sly, false).contains('\x1b'));
    }

    #[test]
    fn json_keeps_the_known_keys_first_and_says_secured_in_a_word_of_its_own() {
        let edges =
            [edge("bot", "web", "√", ""), edge("legacy", "web", "No TLS From Remote", "no_tls_from_remote")];
        let text = json(&edges).expect("JSON");
        let first = text.lines().skip(2).take(7).map(str::trim).collect::<Vec<_>>();
        assert_eq!(
            first,
            [
                "\"src\": \"bot\",",
                "\"src_namespace\": \"demo\",",
                "\"dst\": \"web\",",
                "\"dst_namespace\": \"demo\",",
                "\"client_id\": \"bot.demo\",",
                "\"server_id\": \"web.demo\",",
                "\"no_tls_reason\": \"\",",
            ]
        );
        let rows: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&rows[0]["secured"], &rows[1]["secured"]), (&true.into(), &false.into()));
        assert_eq!(rows[1]["no_tls_reason"], "No TLS From Remote");
        assert_eq!(json(&[]).expect("JSON"), "[]\n");
    }
}
