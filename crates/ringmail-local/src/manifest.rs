//! Manifests: from files, directories and standard input to checked objects.
//!
//! Start here: [`read`] turns what `-f` names into [`Document`]s with their places, [`Object::parse`] gives one its type,
//! and [`check`](check::check) looks at all of them together before anything is started.

pub mod check;
mod document;
mod fields;
mod object;

use std::io::Read as _;
use std::path::{Path, PathBuf};

pub use document::Document;
pub use object::{Kind, Object, ObjectKey, OwnerRef, Template};

use crate::problem::{Problem, Problems};

/// Reads what `-f` names: a file, every `.yaml`, `.yml` and `.json` file of a directory (in the order of their names), or
/// `-` for standard input.
pub fn read(inputs: &[String]) -> Result<Vec<Document>, Problems> {
    let mut documents = Vec::new();
    let mut problems = Problems::default();
    for input in inputs {
        let files = match files_of(input) {
            Ok(files) => files,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        for file in files {
            match text_of(&file).and_then(|(name, text)| {
                document::parse(&name, &text).map_err(|problem| Problems::from(problem).0.remove(0))
            }) {
                Ok(found) => documents.extend(found),
                Err(problem) => problems.push(problem),
            }
        }
    }
    problems.into_result()?;
    Ok(documents)
}

/// Reads manifests from text; `name` stands for the file in messages.
pub fn read_text(name: &str, text: &str) -> Result<Vec<Document>, Problems> {
    document::parse(name, text).map_err(Problems::from)
}

enum Source {
    Stdin,
    File(PathBuf),
}

fn files_of(input: &str) -> Result<Vec<Source>, Problem> {
    if input == "-" {
        return Ok(vec![Source::Stdin]);
    }
    let path = Path::new(input);
    let meta = std::fs::metadata(path).map_err(|error| unreadable(input, &error))?;
    if !meta.is_dir() {
        return Ok(vec![Source::File(path.to_owned())]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|error| unreadable(input, &error))? {
        let entry = entry.map_err(|error| unreadable(input, &error))?.path();
        let manifest = entry.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if manifest && entry.is_file() {
            files.push(entry);
        }
    }
    if files.is_empty() {
        return Err(Problem::new(
            "RM1540",
            input,
            "this directory holds no .yaml, .yml or .json file",
            "name the directory or the file that holds the manifests",
        ));
    }
    files.sort();
    Ok(files.into_iter().map(Source::File).collect())
}

fn text_of(source: &Source) -> Result<(String, String), Problem> {
    match source {
        Source::Stdin => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| unreadable("standard input", &error))?;
            Ok(("standard input".to_owned(), text))
        }
        Source::File(path) => {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|error| unreadable(&name, &error))?;
            Ok((name, text))
        }
    }
}

fn unreadable(name: &str, error: &std::io::Error) -> Problem {
    Problem::new(
        "RM1540",
        name,
        format!("cannot be read: {error}"),
        "check the path and its permissions; `-f` takes a file, a directory or `-`",
    )
}
