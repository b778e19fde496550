//! Whatever the text, editing neither panics nor touches what it should not.

use std::collections::BTreeMap;

use crate::common::{injector, mesh};
use proptest::prelude::*;
use ringmail_inject::text::{Status, Task, rewrite};

/// Pieces that manifests consist of, put together at random.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "apiVersion: v1\n",
        "kind: Pod\n",
        "kind: Deployment\napiVersion: apps/v1\n",
        "metadata:\n",
        "  name: a\n",
        "  annotations:\n",
        "  annotations: {}\n",
        "    a: b\n",
        "spec:\n",
        "  template:\n",
        "    metadata: {}\n",
        "    spec:\n",
        "  containers:\n",
        "  - name: a\n",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "a: ",
        "\"",
        "'",
        "#c\n",
        "\n",
        "---\n",
        "...\n",
        "&a ",
        "*a\n",
        "|\n",
        ">-\n",
        "  x\n",
        "\r\n",
        "\t",
        "é",
        "%YAML 1.1\n",
        "!!str ",
        "? ",
        "<<: *a\n",
        "kind: List\nitems:\n",
    ]);
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// A pod in block or flow style with random labels, comments and layout.
fn pod() -> impl Strategy<Value = (String, usize)> {
    let label = ("[a-z]{1,8}", prop::sample::select(vec!["x", "'1'", "\"é \\n\"", "true1", "~x", "a b"]));
    let labels = prop::collection::btree_map(label.0, label.1, 1..4);
    (labels, 1_usize..5, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(labels, step, comments, annotations, flow)| {
            let (one, two) = (" ".repeat(step), " ".repeat(step * 2));
            let comment = |text: &str| if comments { format!("  # {text}\n") } else { "\n".to_owned() };
            let mut parts =
                vec![format!("apiVersion: v1{}kind: Pod\nmetadata:{}", comment("a"), comment("b"))];
            parts.push(format!("{one}name: p\n"));
            if flow {
                let members: Vec<String> =
                    labels.iter().map(|(key, value)| format!("{key}: {value}")).collect();
                parts.push(format!("{one}labels: {{ {} }}\n", members.join(", ")));
            } else {
                parts.push(format!("{one}labels:{}", comment("c")));
                parts
                    .extend(labels.iter().map(|(key, value)| format!("{two}{key}: {value}{}", comment(key))));
            }
            if annotations {
                parts.push(format!("{one}annotations:\n{two}a: b{}", comment("d")));
            }
            parts.push(format!(
                "spec:\n{one}containers:\n{one}- name: a{}{one}  image: >\n{two}  x\n",
                comment("e")
            ));
            let text = parts.concat();
            // Annotations have their own line where there were none.
            (text, if annotations { 1 } else { 2 })
        },
    )
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in pieces()) {
        let options = BTreeMap::new();
        for task in [Task::Annotate(&options), Task::Uninject] {
            let _result = rewrite("text", &text, task);
        }
    }

    #[test]
    fn annotating_adds_its_lines_and_uninjecting_takes_them_away((text, added) in pod()) {
        let options = BTreeMap::new();
        let annotated = rewrite("text", &text, Task::Annotate(&options)).expect("annotated");
        prop_assert_eq!(&annotated.reports[0].status, &Status::Injected);
        prop_assert!(annotated.reports[0].warnings.is_empty(), "{}", annotated.text);
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        prop_assert_eq!(lines(&annotated.text).len(), lines(&text).len() + added);
        let mut rest = lines(&annotated.text).into_iter();
        for line in lines(&text) {
            prop_assert!(rest.any(|other| other == line), "{line} is gone from\n{}", annotated.text);
        }
        let back = rewrite("text", &annotated.text, Task::Uninject).expect("uninjected");
        prop_assert_eq!(back.text, text);
    }

    #[test]
    fn injecting_in_place_and_uninjecting_gives_the_same_text((text, _) in pod()) {
        let (injector, options) = (injector(mesh(None)).expect("a mesh"), BTreeMap::new());
        let injected = rewrite("text", &text, Task::Inject(&injector, &options)).expect("injected");
        prop_assert!(injected.reports[0].warnings.is_empty(), "{}", injected.text);
        let back = rewrite("text", &injected.text, Task::Uninject).expect("uninjected");
        prop_assert_eq!(back.text, text);
    }
}
