//! Meshes for tests, and files with expected results.

use std::path::Path;

use ringmail_identity::TrustDomain;
use ringmail_inject::{Exemption, InjectError, Injector, Values};
use serde_json::Value;

/// The mesh of the golden files, with what a case changes in it.
pub(crate) fn mesh(changes: Option<&Value>) -> Values {
    let domain = TrustDomain::new("cluster.local", "ringmail").expect("valid");
    let mut values = Values::kubernetes(domain, include_str!("../golden/anchors.pem").to_owned());
    // Releases would change every file.
    values.options.insert("proxy-version".to_owned(), "0.0.0-golden".to_owned());
    "ringmail/injector 0.0.0-golden".clone_into(&mut values.created_by);
    for (key, value) in changes.and_then(Value::as_object).into_iter().flatten() {
        let text = value.as_str().unwrap_or_default().to_owned();
        match key.as_str() {
            "mark" => values.exemption = Exemption::Mark(value.as_u64().expect("a number") as u32),
            "ipv6" => values.ipv6 = value.as_bool().expect("a truth value"),
            "identity_address" => values.identity_address = text,
            "destination_address" => values.destination_address = text,
            "policy_address" => values.policy_address = text,
            "trust_anchors" => values.trust_anchors = text,
            "options" => {
                let options = value.as_object().expect("options").iter();
                values
                    .options
                    .extend(options.map(|(k, v)| (k.clone(), v.as_str().expect("a text").to_owned())));
            }
            other => panic!("{other}: no setting of a case"),
        }
    }
    values
}

pub(crate) fn injector(values: Values) -> Result<Injector, InjectError> {
    Injector::new(values)
}

pub(crate) fn read_yaml(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn to_yaml(value: &Value) -> String {
    let options = serde_saphyr::ser_options! { folded_wrap_chars: 1 << 20 };
    let mut text = String::new();
    serde_saphyr::to_fmt_writer_with_options(&mut text, value, options).expect("written");
    text
}

/// Compares with a file, or writes it when `UPDATE_GOLDEN` is set.
pub(crate) fn compare(path: &Path, actual: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, actual).expect("written");
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        expected == actual,
        "{} is not what came out (UPDATE_GOLDEN=1 writes it anew):\n{}",
        path.display(),
        difference(&expected, actual)
    );
}

/// Lines that differ, with one line around them, by the longest common subsequence.
fn difference(expected: &str, actual: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), actual.lines().collect());
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for (i, a) in old.iter().enumerate().rev() {
        for (j, b) in new.iter().enumerate().rev() {
            common[i][j] =
                if a == b { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines: Vec<(char, &str)> = Vec::new();
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j < new.len() && (i == old.len() || common[i][j + 1] >= common[i + 1][j]) {
            lines.push(('+', new[j]));
            j += 1;
        } else {
            lines.push(('-', old[i]));
            i += 1;
        }
    }
    let near = |index: usize| {
        let from = index.saturating_sub(1);
        lines[from..(index + 2).min(lines.len())].iter().any(|(mark, _)| *mark != ' ')
    };
    let shown = lines.iter().enumerate().filter(|(index, _)| near(*index));
    shown.map(|(_, (mark, line))| format!("{mark} {line}")).collect::<Vec<_>>().join("\n")
}
