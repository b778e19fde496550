//! `docs/injection.md` has the table of options that the code has.

use std::path::Path;

use ringmail_inject::options::{OPTIONS, table};

#[test]
fn the_documentation_has_the_table_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/injection.md");
    let text = std::fs::read_to_string(&path).expect("docs/injection.md");
    let (head, rest) = text.split_once(BEGIN).expect("the mark where the table begins");
    let (present, tail) = rest.split_once(END).expect("the mark where the table ends");
    let wanted = format!("\n{}", table());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, [head, BEGIN, &wanted, END, tail].concat()).expect("written");
        return;
    }
    assert_eq!(present, wanted, "run `UPDATE_DOCS=1 cargo test -p ringmail-inject --test injection`");
}

#[test]
fn every_option_has_a_row_of_its_own() {
    let table = table();
    for option in OPTIONS {
        let row = format!("| `config.ringmail.dev/{}`", option.name);
        assert_eq!(
            table
                .lines()
                .filter(|line| line.starts_with(&format!("{row}<")) || line.starts_with(&format!("{row} ")))
                .count(),
            1
        );
    }
}

const BEGIN: &str =
    "<!-- options: made from the code, see crates/ringmail-inject/tests/injection/documentation.rs -->";
const END: &str = "<!-- end of options -->";
