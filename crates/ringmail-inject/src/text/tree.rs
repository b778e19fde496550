//! Where everything stands in one document's text.

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, Span, StructureStyle};

/// A node with its place, in bytes from the start of the text.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) content: Content,
    pub(super) start: usize,
    /// After the last byte that belongs to it; comments and blank lines after it do not.
    pub(super) end: usize,
    /// How far its first byte stands from the line's start, in characters.
    pub(super) column: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    /// A text, number or the like; `text` as it reads after unescaping.
    Scalar {
        text: String,
        empty: bool,
    },
    Map {
        flow: bool,
        entries: Vec<(Node, Node)>,
    },
    Seq {
        flow: bool,
        items: Vec<Node>,
    },
    /// Stands for a node elsewhere.
    Alias,
}

/// The tree of the only document of `text`; `None` where there is none.
pub(super) fn parse(text: &str) -> Option<Node> {
    let mut events = Parser::new_from_str(text);
    let mut stack: Vec<Open> = Vec::new();
    let mut root = None;
    loop {
        let (event, span) = events.next()?.ok()?;
        let node = match event {
            Event::StreamEnd => return root,
            Event::Scalar(value, style, ..) => {
                let empty = span.start == span.end && style == ScalarStyle::Plain;
                Some(leaf(Content::Scalar { text: value.into_owned(), empty }, &span)?)
            }
            Event::Alias(_) => Some(leaf(Content::Alias, &span)?),
            Event::SequenceStart(style, ..) => {
                stack.push(Open::new(&span, style, true)?);
                None
            }
            Event::MappingStart(style, ..) => {
                stack.push(Open::new(&span, style, false)?);
                None
            }
            Event::SequenceEnd | Event::MappingEnd => Some(stack.pop()?.close(&span)?),
            _ => None,
        };
        let Some(node) = node else { continue };
        match stack.last_mut() {
            Some(open) => open.nodes.push(node),
            None => root = Some(node),
        }
    }
}

struct Open {
    start: usize,
    column: usize,
    flow: bool,
    seq: bool,
    nodes: Vec<Node>,
}

impl Open {
    fn new(span: &Span, style: StructureStyle, seq: bool) -> Option<Self> {
        let (start, column) = (span.start.byte_offset()?, span.start.col());
        Some(Self { start, column, flow: style == StructureStyle::Flow, seq, nodes: Vec::new() })
    }

    fn close(self, span: &Span) -> Option<Node> {
        let Self { start, column, flow, seq, nodes } = self;
        let end = if flow { span.end.byte_offset()? } else { nodes.iter().map(|node| node.end).max()? };
        let content = if seq {
            Content::Seq { flow, items: nodes }
        } else {
            let mut nodes = nodes.into_iter();
            let mut entries = Vec::new();
            while let (Some(key), Some(value)) = (nodes.next(), nodes.next()) {
                entries.push((key, value));
            }
            Content::Map { flow, entries }
        };
        Some(Node { content, start, end, column })
    }
}

fn leaf(content: Content, span: &Span) -> Option<Node> {
    Some(Node {
        content,
        start: span.start.byte_offset()?,
        end: span.end.byte_offset()?,
        column: span.start.col(),
    })
}
