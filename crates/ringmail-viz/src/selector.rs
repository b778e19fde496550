//! Label selectors in the syntax of Kubernetes: `app=web,tier in (a, b),!canary`.

use std::collections::BTreeMap;

/// Conditions on labels, all of which must hold. The empty selector chooses everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Condition>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

/// A text that is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "RM1701: `{selector}` is no label selector: {reason}; examples: `app=web`, `tier!=cache`, `app in (web,api)`, `!canary`"
)]
pub struct SelectorError {
    selector: String,
    reason: String,
}

impl Selector {
    /// Reads a selector.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut conditions = Vec::new();
        for part in split(text) {
            let part = part.trim();
            if part.is_empty() && text.trim().is_empty() {
                continue;
            }
            let condition =
                condition(part).map_err(|reason| SelectorError { selector: text.to_owned(), reason })?;
            conditions.push(condition);
        }
        Ok(Self(conditions))
    }

    /// Whether these labels fulfil every condition.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|condition| match condition {
            Condition::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            // As in Kubernetes, an absent label is not among the values.
            Condition::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Condition::Exists(key) => labels.contains_key(key),
            Condition::Absent(key) => !labels.contains_key(key),
        })
    }
}

/// Parts between commas that are outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_usize);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn condition(part: &str) -> Result<Condition, String> {
    if let Some(key) = part.strip_prefix('!') {
        return Ok(Condition::Absent(checked_key(key)?));
    }
    if let Some((head, tail)) = part.split_once('(') {
        let values = tail.trim_end().strip_suffix(')').ok_or("a closing parenthesis is missing")?;
        let values = values.split(',').map(checked_value).collect::<Result<Vec<_>, _>>()?;
        let head = head.trim_end();
        return if let Some(key) = head.strip_suffix(" notin") {
            Ok(Condition::NotIn(checked_key(key)?, values))
        } else if let Some(key) = head.strip_suffix(" in") {
            Ok(Condition::In(checked_key(key)?, values))
        } else {
            Err("expected `in` or `notin` before the parenthesis".to_owned())
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Ok(Condition::NotIn(checked_key(key)?, vec![checked_value(value)?]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Condition::In(checked_key(key)?, vec![checked_value(value)?]));
    }
    Ok(Condition::Exists(checked_key(part)?))
}

fn checked_key(key: &str) -> Result<String, String> {
    let key = key.trim();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
    if !key.is_empty() && key.bytes().all(allowed) {
        Ok(key.to_owned())
    } else {
        Err(format!("`{key}` is no label key"))
    }
}

fn checked_value(value: &str) -> Result<String, String> {
    let value = value.trim();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if value.len() <= 63 && value.bytes().all(allowed) {
        Ok(value.to_owned())
    } else {
        Err(format!("`{value}` is no label value"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        text.split(' ')
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    }

    #[test]
    fn each_operator_chooses_what_kubernetes_chooses() {
        let web = labels("app=web tier=front ringmail.dev/workload-ns=ballot");
        for (selector, chosen) in [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app=emoji", false),
            ("app!=emoji", true),
            ("app!=web", false),
            ("missing!=x", true),
            ("app in (emoji, web)", true),
            ("app notin (emoji, web)", false),
            ("missing notin (a)", true),
            ("app", true),
            ("missing", false),
            ("!missing", true),
            ("!app", false),
            ("app=web,tier in (front,back),!canary", true),
            ("app=web,tier=back", false),
            ("ringmail.dev/workload-ns=ballot", true),
        ] {
            assert_eq!(Selector::parse(selector).expect(selector).matches(&web), chosen, "{selector}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused_with_its_text() {
        for text in ["=web", "app=we b", "app in web", "app in (web", "app,,tier", "a b", "app=<script>"] {
            let error = Selector::parse(text).expect_err(text).to_string();
            assert!(error.starts_with("RM1701: `") && error.contains(text), "{error}");
        }
    }
}
