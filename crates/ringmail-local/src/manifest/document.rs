//! One document of a manifest, with the line of each of its fields.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_saphyr::Spanned;

use crate::problem::Problem;

/// One object as written, and where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// The file's name as the user gave it, or `standard input`.
    pub file: String,
    /// First line of the document, from 1.
    pub line: u64,
    /// The object.
    pub value: Value,
    /// Line of each field by its path (`spec.containers[0].image`).
    pub lines: BTreeMap<String, u64>,
}

impl Document {
    /// `file:line` of a field, or of the nearest one around it that is written down.
    pub fn place(&self, path: &str) -> String {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return format!("{}:{line}", self.file);
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return format!("{}:{}", self.file, self.line),
            }
        }
    }

    /// A document that no user wrote, such as the control plane's.
    pub fn generated(origin: &str, value: Value) -> Self {
        Self { file: origin.to_owned(), line: 1, value, lines: BTreeMap::new() }
    }
}

/// Splits a text into its documents. `kind: List` is taken apart; documents without content are left out.
pub(super) fn parse(file: &str, text: &str) -> Result<Vec<Document>, Problem> {
    let mut documents = Vec::new();
    for (offset, chunk) in split(text) {
        let node: Spanned<Node> =
            serde_saphyr::from_str_with_options(&chunk, options()).map_err(|error| {
                let line = error.location().map_or(0, |l| l.line());
                let column = error.location().map_or(0, |l| l.column());
                Problem::new(
                    "RM1541",
                    format!("{file}:{}:{column}", offset + line),
                    format!("not valid YAML: {}", brief(&error.without_snippet().to_string())),
                    "correct the syntax at this place",
                )
            })?;
        let mut lines = BTreeMap::new();
        let line = offset + node.referenced.line();
        let value = node.value.into_value("", offset, &mut lines);
        if value.is_null() {
            continue;
        }
        push(Document { file: file.to_owned(), line, value, lines }, &mut documents);
    }
    Ok(documents)
}

/// A list's items become documents of their own.
fn push(document: Document, documents: &mut Vec<Document>) {
    let is_list = document.value.get("kind").and_then(Value::as_str).is_some_and(|k| k == "List");
    let items = document.value.get("items").and_then(Value::as_array).filter(|_| is_list).cloned();
    let Some(items) = items else {
        documents.push(document);
        return;
    };
    for (index, value) in items.into_iter().enumerate() {
        let prefix = format!("items[{index}]");
        let line = document.lines.get(&prefix).copied().unwrap_or(document.line);
        let lines = document
            .lines
            .iter()
            .filter_map(|(path, line)| {
                let rest = path.strip_prefix(&prefix)?.strip_prefix('.')?;
                Some((rest.to_owned(), *line))
            })
            .collect();
        push(Document { file: document.file.clone(), line, value, lines }, documents);
    }
}

/// The documents of a stream with the number of lines before each. A line that starts with `---` ends a document everywhere,
/// in block scalars too (YAML 1.2, 9.1.2), so no parser is needed to find them.
fn split(text: &str) -> Vec<(u64, String)> {
    let mut chunks = vec![(0, String::new())];
    for (number, line) in text.lines().enumerate() {
        let marker = line.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        if let Some(rest) = marker {
            // What follows on the marker's line belongs to the new document: the dashes become blanks to keep columns.
            let rest = if rest.trim_start().starts_with('#') { "" } else { rest };
            chunks.push((
                number as u64,
                if rest.trim().is_empty() { "\n".into() } else { format!("   {rest}\n") },
            ));
        } else if line.trim_end() == "..." {
            chunks.push((number as u64 + 1, String::new()));
        } else if let Some((_, chunk)) = chunks.last_mut() {
            chunk.push_str(line);
            chunk.push('\n');
        }
    }
    chunks.retain(|(_, chunk)| {
        chunk.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
    });
    chunks
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        // Kubernetes reads YAML 1.1: `defaultMode: 0644` is octal.
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

/// The first line of a parser's message, without its own idea of the place.
fn brief(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let line = line.split(" at line ").next().unwrap_or(line);
    line.trim_start_matches("error: ").trim().to_owned()
}

enum Node {
    Scalar(Value),
    Seq(Vec<Spanned<Node>>),
    Map(Vec<(String, Spanned<Node>)>),
}

impl Node {
    fn into_value(self, path: &str, offset: u64, lines: &mut BTreeMap<String, u64>) -> Value {
        match self {
            Self::Scalar(value) => value,
            Self::Seq(items) => Value::Array(
                items
                    .into_iter()
                    .enumerate()
                    .map(|(index, item)| {
                        let path = format!("{path}[{index}]");
                        lines.insert(path.clone(), offset + item.referenced.line());
                        item.value.into_value(&path, offset, lines)
                    })
                    .collect(),
            ),
            Self::Map(entries) => Value::Object(
                entries
                    .into_iter()
                    .map(|(key, item)| {
                        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                        lines.insert(path.clone(), offset + item.referenced.line());
                        let value = item.value.into_value(&path, offset, lines);
                        (key, value)
                    })
                    .collect(),
            ),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NodeVisitor;
        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a YAML value")
            }
            fn visit_bool<E: de::Error>(self, v: bool) -> Result<Node, E> {
                Ok(Node::Scalar(v.into()))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Node, E> {
                Ok(Node::Scalar(v.into()))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Node, E> {
                Ok(Node::Scalar(v.into()))
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Node, E> {
                Ok(Node::Scalar(v.into()))
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Node, E> {
                Ok(Node::Scalar(v.into()))
            }
            fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }
            fn visit_none<E: de::Error>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }
            fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
                Node::deserialize(d)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Node::Seq(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Map(entries))
            }
        }
        deserializer.deserialize_any(NodeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_knows_its_line_across_documents() {
        let text = "# comment\n---\nkind: A\nspec:\n  list:\n  - x: 1\n  - x: 2\n--- # second\nkind: B\n";
        let documents = parse("f.yaml", text).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].place("spec.list[1].x"), "f.yaml:7");
        assert_eq!(documents[0].place("spec.list[1].missing.field"), "f.yaml:7");
        assert_eq!(documents[1].place("kind"), "f.yaml:9");
        assert_eq!(documents[1].line, 9);
    }

    #[test]
    fn a_syntax_error_names_file_line_and_column() {
        let error = parse("f.yaml", "kind: A\n---\nkind: B\nspec: [1, 2\nx: 3\n").unwrap_err();
        assert_eq!(error.code, "RM1541");
        assert!(error.place.starts_with("f.yaml:"), "{error}");
        let line: u64 = error.place.split(':').nth(1).unwrap().parse().unwrap();
        assert!((4..=6).contains(&line), "{error}");
    }

    #[test]
    fn json_and_lists_are_read_too() {
        let text = r#"{"kind":"List","items":[{"kind":"A"},{"kind":"B","n":1.5,"t":true,"z":null}]}"#;
        let documents = parse("f.json", text).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[1].value["n"], 1.5);
        assert_eq!(documents[1].value["t"], true);
    }

    #[test]
    fn strings_stay_strings_and_octal_modes_are_octal() {
        let documents = parse("f", "a: \"80\"\nb: 0644\nc: |\n  x\n   ---\n  y\nd: 'yes'\n").unwrap();
        let value = &documents[0].value;
        assert_eq!(value["a"], "80");
        assert_eq!(value["b"], 420);
        assert_eq!(value["c"], "x\n ---\ny\n");
        assert_eq!(value["d"], "yes");
    }
}
