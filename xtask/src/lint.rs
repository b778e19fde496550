//! `cargo xtask lint`: what a reviewer should not have to look for.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::process;

pub fn run() -> anyhow::Result<()> {
    process::check(process::cargo().args(["fmt", "--all", "--check"]))?;
    process::check(process::cargo().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    let findings = files()?;
    if !findings.is_empty() {
        bail!("the rules of the files are broken:\n  {}", findings.join("\n  "));
    }
    let undocumented = error_codes()?;
    if !undocumented.is_empty() {
        bail!("docs/errors.md and the code disagree:\n  {}", undocumented.join("\n  "));
    }
    let deny = process::capture(process::cargo().args(["deny", "--version"]))?;
    if deny.status.success() {
        process::check(process::cargo().args(["deny", "--offline", "check", "bans", "licenses", "sources"]))?;
        println!("lint: formatting, clippy, files, licences and duplicate crates are in order");
    } else {
        println!("lint: formatting, clippy and files are in order");
        println!(
            "lint: licences and duplicate crates were not checked: `cargo install --locked cargo-deny` and run again"
        );
    }
    Ok(())
}

/// Each file of the repository against the rules that no tool knows.
fn files() -> anyhow::Result<Vec<String>> {
    let output =
        process::capture(Command::new("git").current_dir(process::workspace()).args(["ls-files", "-z"]))?;
    let list = String::from_utf8(output.stdout).context("file names are UTF-8")?;
    let mut findings = Vec::new();
    for name in list.split('\0').filter(|name| !name.is_empty()) {
        let Ok(text) = std::fs::read_to_string(process::workspace().join(name)) else { continue };
        findings.extend(broken_rules(name, &text));
    }
    Ok(findings)
}

/// Codes that stand in the code and not in `docs/errors.md`, and the other way round.
fn error_codes() -> anyhow::Result<Vec<String>> {
    let output = process::capture(
        Command::new("git").current_dir(process::workspace()).args(["ls-files", "-z", "crates"]),
    )?;
    let list = String::from_utf8(output.stdout).context("file names are UTF-8")?;
    let mut used = BTreeSet::new();
    for name in list.split('\0').filter(|name| name.contains("/src/") && is_rust(name)) {
        if let Ok(text) = std::fs::read_to_string(process::workspace().join(name)) {
            used.extend(codes(&text));
        }
    }
    let page =
        std::fs::read_to_string(process::workspace().join("docs/errors.md")).context("docs/errors.md")?;
    let told: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| "))
        .flat_map(|row| codes(row.get(..6).unwrap_or_default()))
        .collect();
    let missing = used.difference(&told).map(|code| format!("{code} is not in docs/errors.md"));
    let stale =
        told.difference(&used).map(|code| format!("{code} stands in docs/errors.md and nowhere else"));
    Ok(missing.chain(stale).collect())
}

fn codes(text: &str) -> BTreeSet<String> {
    let starts = text.match_indices("RM1").map(|(at, _)| at);
    starts
        .filter_map(|at| text.get(at..at + 6))
        .filter(|code| code[2..].bytes().all(|b| b.is_ascii_digit()))
        .map(str::to_owned)
        .collect()
}

fn broken_rules(name: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let rust = is_rust(name);
    let lines = text.lines().count();
    if rust && lines > LONGEST_FILE {
        findings.push(format!("{name} has {lines} lines, more than {LONGEST_FILE}: split it by its nouns"));
    }
    for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
        for word in UNFINISHED {
            if rust && !name.starts_with("xtask/") && line.contains(word) {
                findings.push(format!("{name}:{number} contains `{word}`"));
            }
        }
        if MACHINE_PATHS.iter().any(|path| line.contains(path)) && name != "xtask/src/lint.rs" {
            findings.push(format!("{name}:{number} names a path of one machine"));
        }
        if rust && line.trim_start().starts_with("#[ignore") {
            findings.push(format!("{name}:{number} ignores a test: a test runs or it goes"));
        }
    }
    findings
}

fn is_rust(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "rs")
}

const LONGEST_FILE: usize = 600;
/// Where people's own copies and homes are: a repository reads the same everywhere.
const MACHINE_PATHS: &[&str] = &["/work/", "/workspace/", "/Users/", "/home/runner/"];
const UNFINISHED: &[&str] = &["todo!(", "unimplemented!(", "TODO", "FIXME", "XXX"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_out_of_text() {
        assert_eq!(codes("`RM1203` or RM1999, not RM12x3"), ["RM1203", "RM1999"].map(str::to_owned).into());
    }

    #[test]
    fn unfinished_and_overlong_files_are_found_and_others_are_not() {
        assert_eq!(broken_rules("a.rs", "fn a() {}\n"), Vec::<String>::new());
        assert_eq!(broken_rules("a.rs", "fn a() { todo!() }\n").len(), 1);
        assert_eq!(broken_rules("a.rs", "#[ignore]\nfn a() {}\n").len(), 1);
        assert_eq!(broken_rules("a.rs", &"\n".repeat(601)).len(), 1);
        assert_eq!(broken_rules("a.md", &"\n".repeat(601)).len(), 0);
        assert_eq!(broken_rules("a.md", "see /Users/somebody/x\n").len(), 1);
    }
}
