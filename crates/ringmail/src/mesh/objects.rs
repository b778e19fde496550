//! `ringmail apply` and `ringmail delete`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use ringmail_local::manifest::{self, Kind, Object, ObjectKey};
use ringmail_local::problem::{Problem, Problems};
use ringmail_local::programs::Programs;
use ringmail_local::protocol::Severity;
use ringmail_local::store::Applied;

use super::{find, refused, warn};
use crate::Which;
use crate::say::say;

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// Manifests: a file, a directory, or `-` for standard input
    #[arg(short, long = "file", value_name = "FILE|DIR|-", required = true)]
    files: Vec<String>,
    /// The program that stands for an image
    #[arg(long, value_name = "IMAGE=PROGRAM [ARG…]")]
    run: Vec<String>,
    /// Leave documents of this kind out
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    skip_kind: Vec<String>,
    /// Wait until everything is rolled out
    #[arg(short, long)]
    wait: bool,
    /// Seconds until it is an error that not everything is ready
    #[arg(long, default_value_t = 120)]
    timeout: u64,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Objects, such as `deploy/web` or `pod/web-0`
    #[arg(value_name = "KIND/NAME", required_unless_present = "files", conflicts_with = "files")]
    objects: Vec<String>,
    /// Their namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Manifests whose objects are to go: a file, a directory, or `-` for standard input
    #[arg(short, long = "file", value_name = "FILE|DIR|-")]
    files: Vec<String>,
    /// Objects that are not there are no error
    #[arg(long)]
    ignore_not_found: bool,
}

pub(super) async fn apply(args: ApplyArgs, which: &Which) -> anyhow::Result<ExitCode> {
    let documents = match manifest::read(&args.files) {
        Ok(documents) => documents,
        Err(problems) => return Ok(refused(&problems)),
    };
    // Images and programs are checked by the daemon, which knows what was said at `up`.
    let path = if args.run.is_empty() { String::new() } else { std::env::var("PATH").unwrap_or_default() };
    let programs = match Programs::parse(&args.run, &path) {
        Ok(programs) => programs,
        Err(problem) => return Ok(refused(&problem.into())),
    };
    let mesh = find(which)?;
    let outcome = mesh.apply(documents, programs, args.skip_kind).await?;
    warn(&outcome.warnings);
    for (key, applied) in &outcome.objects {
        let what = match applied {
            Applied::Created => "created",
            Applied::Configured => "configured",
            Applied::Unchanged => "unchanged",
        };
        say!("{key} {what}");
    }
    if args.wait {
        mesh.wait(Duration::from_secs(args.timeout), |event| {
            if event.severity == Severity::Warning {
                eprintln!("warning: {}: {} ({})", event.about, event.message, event.reason);
            }
        })
        .await?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn delete(args: DeleteArgs, which: &Which) -> anyhow::Result<ExitCode> {
    let keys = if args.files.is_empty() {
        from_names(&args.objects, &args.namespace)
    } else {
        from_files(&args.files)
    };
    let keys = match keys {
        Ok(keys) => keys,
        Err(problems) => return Ok(refused(&problems)),
    };
    let ignore_missing = args.ignore_not_found;
    for key in find(which)?.delete(keys, ignore_missing).await? {
        say!("{key} deleted");
    }
    Ok(ExitCode::SUCCESS)
}

fn from_names(names: &[String], namespace: &str) -> Result<Vec<ObjectKey>, Problems> {
    let mut keys = Vec::new();
    let mut problems = Problems::default();
    for name in names {
        match name.split_once('/').and_then(|(kind, name)| Some((Kind::from_user(kind)?, name))) {
            Some((Kind::Namespace, name)) => keys.push(ObjectKey::new(Kind::Namespace, "", name)),
            Some((kind, name)) => keys.push(ObjectKey::new(kind, namespace, name)),
            None => problems.push(Problem::new(
                "RM1559",
                name.clone(),
                "names no object",
                format!("write KIND/NAME with one of {}", Kind::listed()),
            )),
        }
    }
    problems.into_result()?;
    Ok(keys)
}

/// In the opposite order of their making: workloads before what they use.
fn from_files(files: &[String]) -> Result<Vec<ObjectKey>, Problems> {
    let mut keys = Vec::new();
    let mut problems = Problems::default();
    for document in manifest::read(files)? {
        match Object::parse(&document) {
            Ok((object, _)) => keys.push(object.key()),
            Err(found) => problems.0.extend(found.0),
        }
    }
    problems.into_result()?;
    keys.sort_by_key(|key| std::cmp::Reverse(key.kind));
    // What a namespace takes along is gone before its own turn comes.
    let namespaces: Vec<String> =
        keys.iter().filter(|key| key.kind == Kind::Namespace).map(|key| key.name.clone()).collect();
    keys.retain(|key| key.kind == Kind::Namespace || !namespaces.contains(&key.namespace));
    Ok(keys)
}
