//! JSON patches (RFC 6902): the operations that injection needs.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::InjectError;

/// Operations, applied one after the other.
pub type Patch = Vec<Operation>;

/// One change. Paths are JSON pointers (RFC 6901).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Operation {
    /// Sets a member of an object, or inserts before an element of an array (`-`: at its end).
    Add {
        /// Where.
        path: String,
        /// What.
        value: Value,
    },
    /// Takes a member or an element away.
    Remove {
        /// Where.
        path: String,
    },
    /// Changes what is there.
    Replace {
        /// Where.
        path: String,
        /// What then stands there.
        value: Value,
    },
}

impl Operation {
    /// Where.
    pub fn path(&self) -> &str {
        match self {
            Self::Add { path, .. } | Self::Remove { path } | Self::Replace { path, .. } => path,
        }
    }

    /// The same change in something that holds the value at `prefix`.
    #[must_use]
    pub fn under(self, prefix: &str) -> Self {
        let at = |path: String| format!("{prefix}{path}");
        match self {
            Self::Add { path, value } => Self::Add { path: at(path), value },
            Self::Remove { path } => Self::Remove { path: at(path) },
            Self::Replace { path, value } => Self::Replace { path: at(path), value },
        }
    }
}

/// Applies the whole patch, or nothing of it.
pub fn apply_patch(target: &mut Value, patch: &[Operation]) -> Result<(), InjectError> {
    let mut work = target.clone();
    for operation in patch {
        apply(&mut work, operation)?;
    }
    *target = work;
    Ok(())
}

/// A key as one step of a pointer.
pub(crate) fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// The steps of a pointer.
pub(crate) fn steps(path: &str) -> Vec<String> {
    path.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect()
}

fn apply(target: &mut Value, operation: &Operation) -> Result<(), InjectError> {
    let path = operation.path();
    let refuse = |why: &str| InjectError::Patch { path: path.to_owned(), why: why.to_owned() };
    let Some((parent, _)) = path.rsplit_once('/') else { return Err(refuse("is not the path of a member")) };
    let last = steps(path).pop().unwrap_or_default();
    let parent = target.pointer_mut(parent).ok_or_else(|| refuse("what should hold it is not there"))?;
    match (parent, operation) {
        (Value::Object(members), Operation::Add { value, .. }) => {
            members.insert(last, value.clone());
        }
        (Value::Object(members), Operation::Remove { .. }) => {
            members.shift_remove(&last).ok_or_else(|| refuse("is not there"))?;
        }
        (Value::Object(members), Operation::Replace { value, .. }) => {
            *members.get_mut(&last).ok_or_else(|| refuse("is not there"))? = value.clone();
        }
        (Value::Array(elements), Operation::Add { value, .. }) => {
            let index = if last == "-" { Some(elements.len()) } else { last.parse().ok() };
            let index =
                index.filter(|index| *index <= elements.len()).ok_or_else(|| refuse("no such place"))?;
            elements.insert(index, value.clone());
        }
        (Value::Array(elements), Operation::Remove { .. } | Operation::Replace { .. }) => {
            let index = last.parse().ok().filter(|index: &usize| *index < elements.len());
            let index = index.ok_or_else(|| refuse("is not there"))?;
            if let Operation::Replace { value, .. } = operation {
                elements[index] = value.clone();
            } else {
                elements.remove(index);
            }
        }
        _ => return Err(refuse("what should hold it is neither an object nor an array")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(patch: Value) -> Patch {
        serde_json::from_value(patch).expect("a patch")
    }

    #[test]
    fn operations_do_what_the_rfc_says() {
        let mut value = json!({ "a": [1, 3], "b": { "x/y": 1 } });
        let patch = read(json!([
            { "op": "add", "path": "/a/1", "value": 2 },
            { "op": "add", "path": "/a/-", "value": 4 },
            { "op": "replace", "path": "/b/x~1y", "value": 2 },
            { "op": "add", "path": "/c", "value": {} },
            { "op": "add", "path": "/c/m~0n", "value": null },
            { "op": "remove", "path": "/a/0" },
        ]));
        apply_patch(&mut value, &patch).expect("applied");
        assert_eq!(value, json!({ "a": [2, 3, 4], "b": { "x/y": 2 }, "c": { "m~n": null } }));
    }

    #[test]
    fn a_patch_that_does_not_fit_changes_nothing() {
        let before = json!({ "a": [1] });
        for bad in [
            json!([{ "op": "add", "path": "/b", "value": 1 }, { "op": "remove", "path": "/x" }]),
            json!([{ "op": "add", "path": "/b", "value": 1 }, { "op": "add", "path": "/a/2", "value": 1 }]),
            json!([{ "op": "add", "path": "/b", "value": 1 }, { "op": "replace", "path": "/a/x", "value": 1 }]),
            json!([{ "op": "add", "path": "/b", "value": 1 }, { "op": "add", "path": "/b/c", "value": 1 }]),
            json!([{ "op": "add", "path": "/n/c", "value": 1 }]),
        ] {
            let mut value = before.clone();
            assert_eq!(apply_patch(&mut value, &read(bad)).expect_err("refused").code(), "RM1404");
            assert_eq!(value, before);
        }
    }
}
