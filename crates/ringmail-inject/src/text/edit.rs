//! Carries out a patch on text, touching nothing else.

use serde_json::{Value, json};

use super::documents::{parse, to_yaml};
use super::tree::{self, Content, Node};
use crate::patch::{Operation, steps};

/// The edited text, or `None` where an edit is not possible or would mean something else than `after`.
pub(super) fn apply(text: &str, before: &Value, after: &Value, patch: &[Operation]) -> Option<String> {
    if before == after {
        return Some(text.to_owned());
    }
    let mut edited = text.to_owned();
    for operation in patch {
        edited = Edit::new(&edited, tree::parse(&edited)?).carry_out(operation)?;
    }
    (parse(&edited).ok()? == *after).then_some(edited)
}

struct Edit<'a> {
    text: &'a str,
    newline: &'static str,
    root: Node,
}

/// What a node stands in.
#[derive(Clone, Copy)]
enum Holder<'a> {
    Document,
    /// A member of an object; the node is its key.
    Member {
        key: &'a Node,
        flow: bool,
    },
    Element,
}

impl<'a> Edit<'a> {
    fn new(text: &'a str, root: Node) -> Self {
        let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
        Self { text, newline, root }
    }

    fn carry_out(&self, operation: &Operation) -> Option<String> {
        let path = steps(operation.path());
        let (last, parents) = path.split_last()?;
        let (mut node, mut holder) = (&self.root, Holder::Document);
        for step in parents {
            (node, holder) = match &node.content {
                Content::Map { flow, entries } => {
                    let (key, value) = entries.iter().find(|(key, _)| is_key(key, step))?;
                    (value, Holder::Member { key, flow: *flow })
                }
                Content::Seq { items, .. } => (items.get(step.parse::<usize>().ok()?)?, Holder::Element),
                _ => return None,
            };
        }
        match operation {
            Operation::Add { value, .. } => self.add(node, holder, last, value),
            Operation::Replace { value, .. } => match &node.content {
                Content::Map { entries, .. } => {
                    let (key, old) = entries.iter().find(|(key, _)| is_key(key, last))?;
                    self.replace(key, old, value)
                }
                _ => None,
            },
            Operation::Remove { .. } => self.remove(node, last),
        }
    }

    fn add(&self, node: &Node, holder: Holder<'_>, step: &str, value: &Value) -> Option<String> {
        match &node.content {
            Content::Scalar { text, empty } if *empty || text == "null" || text == "~" => {
                self.fill(node, holder, &json!({ step: value }))
            }
            Content::Map { flow, entries } => {
                if let Some((key, old)) = entries.iter().find(|(key, _)| is_key(key, step)) {
                    return self.replace(key, old, value);
                }
                match (entries.first(), entries.last(), flow) {
                    (Some((first, _)), _, true) => self.insert_flow(node, first, &member(step, value)?),
                    (_, Some((key, last)), false) => {
                        let at = self.after(self.end_of(key, last)?);
                        self.insert_lines(at, node.column, &json!({ step: value }))
                    }
                    _ => self.fill(node, holder, &json!({ step: value })),
                }
            }
            Content::Seq { flow, items } => {
                let index = if step == "-" { items.len() } else { step.parse().ok()? };
                match (items.get(index), items.last(), flow) {
                    (_, None, _) => self.fill(node, holder, &json!([value])),
                    (Some(next), _, true) => {
                        Some(self.insert(next.start, &format!("{}, ", flow_text(value)?)))
                    }
                    (None, Some(last), true) => {
                        Some(self.insert(last.end, &format!(", {}", flow_text(value)?)))
                    }
                    (Some(next), _, false) => {
                        let dash = self.dash(next)?;
                        // Comments above an element are about that one, so the new element goes before them.
                        let at = match (index.checked_sub(1).and_then(|before| items.get(before)), holder) {
                            (Some(before), _) => self.after(before.end),
                            (None, Holder::Member { key, .. }) => self.next_line(key.end)?,
                            _ => self.line_start(dash),
                        };
                        self.insert_lines(at, dash - self.line_start(dash), &json!([value]))
                    }
                    (None, Some(last), false) => {
                        let dash = self.dash(last)?;
                        self.insert_lines(self.after(last.end), dash - self.line_start(dash), &json!([value]))
                    }
                }
            }
            _ => None,
        }
    }

    /// Gives a member that is null, `{}` or `[]` its first content.
    fn fill(&self, node: &Node, holder: Holder<'_>, content: &Value) -> Option<String> {
        let Holder::Member { key, flow: false } = holder else {
            return (node.end > node.start)
                .then(|| Some(self.splice(node.start, node.end, &flow_text(content)?)))?;
        };
        let line_end = self.line_end(node.end.max(key.end));
        // Whatever stood after the colon goes; a comment behind it stays.
        let colon = self.colon(key)?;
        let rest = self.text.get(node.end.max(colon)..line_end)?.trim_start();
        let mut text = self.text.get(..colon)?.to_owned();
        if !rest.is_empty() {
            text.push(' ');
            text.push_str(rest);
        }
        let at = text.len();
        text.push_str(self.text.get(line_end..)?);
        // Lists stand under their key, as Kubernetes' own tools write them.
        let column = if content.is_array() { key.column } else { key.column + 2 };
        let edit = Edit { text: &text, newline: self.newline, root: node.clone() };
        edit.insert_lines(edit.after(at), column, content)
    }

    fn replace(&self, key: &Node, old: &Node, value: &Value) -> Option<String> {
        let Content::Scalar { empty, .. } = &old.content else { return None };
        let new = flow_text(value)?;
        if *empty {
            return Some(self.insert(self.colon(key)?, &format!(" {new}")));
        }
        Some(self.splice(old.start, old.end, &new))
    }

    fn remove(&self, node: &Node, step: &str) -> Option<String> {
        match &node.content {
            Content::Map { flow, entries } => {
                let index = entries.iter().position(|(key, _)| is_key(key, step))?;
                let places: Option<Vec<(usize, usize)>> =
                    entries.iter().map(|(key, value)| Some((key.start, self.end_of(key, value)?))).collect();
                self.remove_place(*flow, &places?, index, Some)
            }
            Content::Seq { flow, items } => {
                let places: Vec<(usize, usize)> = items.iter().map(|item| (item.start, item.end)).collect();
                self.remove_place(*flow, &places, step.parse().ok()?, |start| self.dash_before(start))
            }
            _ => None,
        }
    }

    /// Removes one of several places; `first` gives where in its line a place begins in block style.
    fn remove_place(
        &self,
        flow: bool,
        places: &[(usize, usize)],
        index: usize,
        first: impl Fn(usize) -> Option<usize>,
    ) -> Option<String> {
        let (start, end) = *places.get(index)?;
        if flow {
            let before = index.checked_sub(1).and_then(|before| places.get(before));
            return Some(match (places.get(index + 1), before) {
                (Some((next, _)), _) => self.splice(start, *next, ""),
                (None, Some((_, before))) => self.splice(*before, end, ""),
                (None, None) => self.splice(start, end, ""),
            });
        }
        // An empty block would be null, not an empty object.
        if places.len() == 1 {
            return None;
        }
        let begin = first(start)?;
        let line = self.line_start(begin);
        let alone = self.text.get(line..begin)?.bytes().all(|b| b == b' ');
        alone.then(|| self.splice(line, self.after(end), ""))
    }

    /// Inserts a flow member before the first one, with the layout that the object has.
    fn insert_flow(&self, node: &Node, first: &Node, text: &str) -> Option<String> {
        let layout = self.text.get(node.start + 1..first.start)?;
        // A comment there belongs to the first member.
        if layout.contains('#') {
            return None;
        }
        let separator = if layout.contains('\n') { layout } else { " " };
        Some(self.insert(first.start, &format!("{text},{separator}")))
    }

    /// Inserts the content in block style, as lines before the one that begins at `at`.
    fn insert_lines(&self, at: usize, column: usize, content: &Value) -> Option<String> {
        let margin = " ".repeat(column);
        let mut lines = String::new();
        if at > 0 && !self.text.get(..at)?.ends_with('\n') {
            lines.push_str(self.newline);
        }
        for line in to_yaml(content).ok()?.lines() {
            if !line.is_empty() {
                lines.push_str(&margin);
                lines.push_str(line);
            }
            lines.push_str(self.newline);
        }
        Some(self.insert(at, &lines))
    }

    fn insert(&self, at: usize, text: &str) -> String {
        self.splice(at, at, text)
    }

    fn splice(&self, start: usize, end: usize, text: &str) -> String {
        let (head, tail) =
            (self.text.get(..start).unwrap_or_default(), self.text.get(end..).unwrap_or_default());
        [head, text, tail].concat()
    }

    /// After a member's last byte: an absent value ends with the colon.
    fn end_of(&self, key: &Node, value: &Node) -> Option<usize> {
        match value.content {
            Content::Scalar { empty: true, .. } => self.colon(key),
            _ => Some(value.end),
        }
    }

    /// After the colon that follows a key.
    fn colon(&self, key: &Node) -> Option<usize> {
        let rest = self.text.get(key.end..)?;
        let blanks = rest.len() - rest.trim_start_matches([' ', '\t']).len();
        rest[blanks..].starts_with(':').then_some(key.end + blanks + 1)
    }

    /// Where the dash of a block sequence's item stands, when it is on the item's first line.
    fn dash(&self, item: &Node) -> Option<usize> {
        let dash = self.dash_before(item.start)?;
        self.text.get(self.line_start(dash)..dash)?.bytes().all(|b| b == b' ').then_some(dash)
    }

    fn dash_before(&self, start: usize) -> Option<usize> {
        let before = self.text.get(self.line_start(start)..start)?;
        let trimmed = before.trim_end_matches(' ');
        trimmed.ends_with('-').then(|| self.line_start(start) + trimmed.len() - 1)
    }

    fn line_start(&self, at: usize) -> usize {
        self.text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1)
    }

    /// Before the line's end.
    fn line_end(&self, at: usize) -> usize {
        let rest = self.text.get(at..).unwrap_or_default();
        let line = rest.split('\n').next().unwrap_or_default();
        at + line.trim_end_matches('\r').len()
    }

    /// The start of the next line; of none, when this is the last one.
    fn next_line(&self, at: usize) -> Option<usize> {
        let newline = self.text.get(at..)?.find('\n')?;
        Some(at + newline + 1)
    }

    /// Where lines go that follow content which ends at `at`.
    fn after(&self, at: usize) -> usize {
        // The text of a literal block ends with its last newline.
        if at > 0 && self.text.get(..at).is_some_and(|before| before.ends_with('\n')) {
            return at;
        }
        self.next_line(at).unwrap_or(self.text.len())
    }
}

fn is_key(node: &Node, key: &str) -> bool {
    matches!(&node.content, Content::Scalar { text, .. } if text == key)
}

/// JSON is flow style.
fn flow_text(value: &Value) -> Option<String> {
    match value {
        // A plain word needs no quotes wherever it stands.
        Value::String(word) if is_plain(word) => Some(word.clone()),
        value => serde_json::to_string(value).ok(),
    }
}

fn member(key: &str, value: &Value) -> Option<String> {
    Some(format!("{}: {}", serde_json::to_string(key).ok()?, serde_json::to_string(value).ok()?))
}

fn is_plain(word: &str) -> bool {
    PLAIN.contains(&word)
}

/// The words that edits of single values write.
const PLAIN: &[&str] = &["enabled", "disabled"];
