//! `cargo xtask test`: every test, and none skipped without a word.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, bail};

use crate::process;

#[derive(clap::Args)]
pub struct Arguments {
    /// Only tests whose name contains this; the run then says that it was not whole
    filter: Option<String>,
}

/// Programs that tests run against the mesh, and the Debian package of each.
const FOREIGN: &[(&str, &str)] = &[
    ("curl", "curl"),
    ("mariadbd", "mariadb-server"),
    ("nft", "nftables"),
    ("nginx", "nginx-light"),
    ("openssl", "openssl"),
    ("psql", "postgresql"),
    ("python3", "python3"),
    ("redis-server", "redis-server"),
    ("setpriv", "util-linux"),
    ("tcpdump", "tcpdump"),
    ("wrk", "wrk"),
];

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let started = Instant::now();
    if !process::is_root() {
        bail!(
            "the tests run meshes as root and as an ordinary user, so they start as root: `sudo -E cargo xtask test`"
        );
    }
    require_programs()?;
    process::check(process::cargo().args(["build", "--quiet", "--workspace", "--bins"]))?;
    let mut command = process::cargo();
    command.args(["test", "--workspace", "--no-fail-fast", "--"]);
    command.args(arguments.filter.iter());
    let mut child = command.stdout(Stdio::piped()).spawn().context("cargo did not start")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut totals = Totals::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("cargo's output")?;
        println!("{line}");
        totals.add(&line);
    }
    let status = child.wait().context("cargo's end")?;
    println!("\ntests: {} in {:.0} s", totals.line(), started.elapsed().as_secs_f32());
    println!("{} passed, {} failed", totals.passed, totals.failed);
    if totals.ignored > 0 {
        bail!("{} tests are marked to be ignored: a test runs or it goes", totals.ignored);
    }
    if totals.filtered > 0 && arguments.filter.is_none() {
        bail!("{} tests were filtered out, and no filter was asked for", totals.filtered);
    }
    if totals.passed == 0 {
        bail!("no test ran");
    }
    if !status.success() || totals.failed > 0 {
        bail!("the tests failed");
    }
    Ok(())
}

fn require_programs() -> anyhow::Result<()> {
    let folders = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let present =
        |program: &str| folders.iter().any(|folder| std::path::Path::new(folder).join(program).exists());
    let missing: Vec<&str> =
        FOREIGN.iter().filter(|(program, _)| !present(program)).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        bail!(
            "the tests run unmodified programs in the mesh, and some are missing; on Debian: apt-get install -y --no-install-recommends {}",
            missing.join(" ")
        );
    }
    Ok(())
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: u64,
    failed: u64,
    ignored: u64,
    filtered: u64,
}

impl Totals {
    /// Adds a line such as `test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s`.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) =
            line.trim_start().strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split(';') {
            let mut words = count.split_whitespace();
            let (Some(number), Some(word)) = (words.next().and_then(|n| n.parse::<u64>().ok()), words.next())
            else {
                continue;
            };
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                "filtered" => self.filtered += number,
                _ => {}
            }
        }
    }

    fn line(&self) -> String {
        format!("{} ran, {} ignored, {} filtered out", self.passed + self.failed, self.ignored, self.filtered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_or_filtered_test_is_counted() {
        let mut totals = Totals::default();
        totals.add(
            "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
        );
        totals.add("test result: FAILED. 3 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s");
        totals.add("test some::test ... ok");
        assert_eq!(totals, Totals { passed: 8, failed: 4, ignored: 1, filtered: 2 });
    }
}
