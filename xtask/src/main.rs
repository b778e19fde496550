//! The menu for working on Ringmail: `cargo xtask demo`, `test`, `lint`.
//!
//! Start here: each entry is a module of its own; [`process`] runs programs and says which one failed.

mod demo;
mod figures;
mod lint;
mod process;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The menu for working on Ringmail")]
enum Menu {
    #[command(flatten)]
    Entry(Entry),
}

#[derive(Subcommand)]
enum Entry {
    /// Build in release mode and start the local mesh with `demo/ballot.yaml`
    Demo(demo::Arguments),
    /// Run every test, in real network namespaces
    Test(test::Arguments),
    /// The sizes of the programs, and a proxy's memory after start and with 1,000 idle connections
    Figures,
    /// Formatting, clippy without warnings, the rules of the files, licences
    Lint,
}

fn main() -> ExitCode {
    let Menu::Entry(entry) = Menu::parse();
    let result = match entry {
        Entry::Demo(arguments) => demo::run(&arguments),
        Entry::Test(arguments) => test::run(&arguments),
        Entry::Figures => figures::run(),
        Entry::Lint => lint::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
