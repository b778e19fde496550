//! The documents of a stream of YAML or JSON.

use serde_json::Value;
use serde_saphyr::granit_parser::{Event, Parser};

use crate::error::InjectError;

/// One document, with the marker and the comments before it; all of them together are the whole text.
pub(super) struct Document<'a> {
    pub(super) text: &'a str,
    /// Its first line in the whole, from 0.
    line: usize,
}

/// Cuts a stream into its documents.
pub(super) fn split<'a>(name: &str, text: &'a str) -> Result<Vec<Document<'a>>, InjectError> {
    let mut starts = vec![0];
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| InjectError::Syntax {
            place: format!("{name}:{}", error.marker().line()),
            why: error.info(),
        })?;
        if let (Event::DocumentStart(true, _), Some(at)) = (event, span.start.byte_offset()) {
            // What stands before the first marker are comments, or a document of its own.
            if text.get(..at).is_some_and(|before| before.lines().any(is_content)) {
                starts.push(at);
            }
        }
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let documents = starts.iter().zip(ends).map(|(start, end)| Document {
        text: text.get(*start..end).unwrap_or_default(),
        line: text.get(..*start).unwrap_or_default().matches('\n').count(),
    });
    Ok(documents.collect())
}

/// The document as a value.
pub(super) fn read(name: &str, document: &Document<'_>) -> Result<Value, InjectError> {
    parse(document.text).map_err(|error| {
        let line = error.location().map_or(1, |location| usize::try_from(location.line()).unwrap_or(1));
        let why = brief(&error.to_string());
        InjectError::Syntax { place: format!("{name}:{}", document.line + line), why }
    })
}

/// Reads one document as Kubernetes does, which follows YAML 1.1 in numbers and truth values.
pub(super) fn parse(text: &str) -> Result<Value, serde_saphyr::Error> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
    serde_saphyr::from_str_with_options(text, options)
}

/// The value as text, after the document's own first lines.
pub(super) fn write_anew(name: &str, document: &Document<'_>, value: &Value) -> Result<String, InjectError> {
    let head = document.text.lines().take_while(|line| !is_content(line) || line.starts_with("---"));
    let mut text: String = head.flat_map(|line| [line, "\n"]).collect();
    text.push_str(&to_yaml(value).map_err(|error| InjectError::Syntax {
        place: format!("{name}:{}", document.line + 1),
        why: format!("cannot be written: {error}"),
    })?);
    Ok(text)
}

/// Block style, long texts on one line, texts of several lines as they are.
pub(super) fn to_yaml(value: &Value) -> Result<String, serde_saphyr::SerializeError> {
    let options = serde_saphyr::ser_options! { folded_wrap_chars: LONG };
    let mut text = String::new();
    serde_saphyr::to_fmt_writer_with_options(&mut text, value, options)?;
    Ok(text)
}

/// The parser's first line, without its own idea of the place and of its settings.
fn brief(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
    let line = [", set ", " at line "].iter().fold(line, |line, end| line.split(end).next().unwrap_or(line));
    match line.strip_prefix("line ").and_then(|rest| rest.split_once(": ")) {
        Some((_, what)) => what.to_owned(),
        None => line.to_owned(),
    }
}

fn is_content(line: &str) -> bool {
    let line = line.trim_start();
    !line.is_empty() && !line.starts_with('#')
}

const LONG: usize = 1 << 20;
