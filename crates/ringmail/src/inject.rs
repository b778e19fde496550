//! `ringmail inject` and `ringmail uninject`: manifests in, manifests out on stdout, what was done on stderr.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, Subcommand};
use ringmail_identity::TrustDomain;
use ringmail_inject::options::{self, OPTIONS};
use ringmail_inject::text::{Report, Task, render, rewrite};
use ringmail_inject::{InjectError, Injector, Values};

#[derive(Debug, Subcommand)]
pub(crate) enum InjectCommand {
    /// Mesh the workloads of manifests: ask for injection where they are applied, or add the proxy here
    Inject(Box<InjectArgs>),
    /// Take the proxy, and the wish for it, out of manifests
    Uninject(UninjectArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InjectArgs {
    #[command(flatten)]
    inputs: Inputs,
    /// Add the whole proxy, instead of the annotation that asks for it
    #[arg(long, requires = "trust_anchors")]
    manual: bool,
    /// Also say what was looked at and found in order
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    options: OptionFlags,
}

#[derive(Debug, Args)]
pub(crate) struct UninjectArgs {
    #[command(flatten)]
    inputs: Inputs,
}

#[derive(Debug, Args)]
struct Inputs {
    /// Manifests in YAML or JSON: files, directories (of which every .yaml, .yml and .json file), `-` for stdin
    #[arg(value_name = "FILE|DIR|-")]
    paths: Vec<String>,
}

/// The mesh whose proxy `--manual` adds.
#[derive(Debug, Args)]
#[command(next_help_heading = "The mesh, for --manual")]
struct MeshArgs {
    /// Certificates in PEM form that the proxies start to trust
    #[arg(long, value_name = "FILE", requires = "manual")]
    trust_anchors: Option<PathBuf>,
    /// Namespace of the control plane
    #[arg(long, value_name = "NAME", default_value = "ringmail")]
    control_plane_namespace: String,
    /// Namespace part of the mesh's identities [default: the control plane's namespace]
    #[arg(long, value_name = "NAME")]
    identity_namespace: Option<String>,
    /// Trust domain
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// Address of the identity service [default: identity.<control plane>.svc.<trust domain>.:8080]
    #[arg(long, value_name = "HOST:PORT")]
    identity_addr: Option<String>,
    /// Address of the destination service [default: destination.<control plane>.svc.<trust domain>.:8086]
    #[arg(long, value_name = "HOST:PORT")]
    destination_addr: Option<String>,
    /// Address of the policy service [default: policy.<control plane>.svc.<trust domain>.:8090]
    #[arg(long, value_name = "HOST:PORT")]
    policy_addr: Option<String>,
    /// Networks of pods and services [default: the private ones]
    #[arg(long, value_name = "CIDR,…")]
    cluster_networks: Option<String>,
    /// Audience of the proxies' tokens
    #[arg(long, value_name = "NAME", default_value = "identity.ringmail.dev")]
    token_audience: String,
    /// Leave IPv6 connections as they are
    #[arg(long)]
    disable_ipv6: bool,
}

/// One flag for each option of the table.
#[derive(Debug, Default)]
struct OptionFlags(BTreeMap<String, String>);

pub(crate) fn run(command: InjectCommand) -> anyhow::Result<ExitCode> {
    match command {
        InjectCommand::Uninject(args) => transform(&args.inputs, Task::Uninject, false),
        InjectCommand::Inject(args) => {
            let options = &args.options.0;
            options::check(options).map_err(of_flag)?;
            if args.manual {
                let injector = args.mesh.injector()?;
                transform(&args.inputs, Task::Inject(&injector, options), args.verbose)
            } else {
                transform(&args.inputs, Task::Annotate(options), args.verbose)
            }
        }
    }
}

/// Prints nothing to stdout unless every document could be done.
fn transform(inputs: &Inputs, task: Task<'_>, verbose: bool) -> anyhow::Result<ExitCode> {
    let mut text = String::new();
    let mut reports: Vec<Report> = Vec::new();
    for (name, manifest) in inputs.read()? {
        let rewritten = rewrite(&name, &manifest, task)?;
        append(&mut text, &rewritten.text);
        reports.extend(rewritten.reports);
    }
    std::io::stdout().lock().write_all(text.as_bytes()).context("cannot print the manifests")?;
    eprint!("{}", render(&reports, verbose, !matches!(task, Task::Uninject)));
    Ok(ExitCode::SUCCESS)
}

/// Joins manifests to one stream.
fn append(stream: &mut String, manifest: &str) {
    if !stream.is_empty() && !manifest.is_empty() {
        if !stream.ends_with('\n') {
            stream.push('\n');
        }
        if !manifest.starts_with("---") {
            stream.push_str("---\n");
        }
    }
    stream.push_str(manifest);
}

impl Inputs {
    fn read(&self) -> anyhow::Result<Vec<(String, String)>> {
        if self.paths.is_empty() && std::io::stdin().is_terminal() {
            bail!("no manifests given\nhint: name files or directories, or pipe manifests in");
        }
        let paths: &[String] = if self.paths.is_empty() { &["-".to_owned()] } else { &self.paths };
        let mut manifests = Vec::new();
        for path in paths {
            if path == "-" {
                let mut text = String::new();
                std::io::stdin().lock().read_to_string(&mut text).context("cannot read stdin")?;
                manifests.push(("stdin".to_owned(), text));
                continue;
            }
            for file in files(Path::new(path))? {
                let name = file.display().to_string();
                let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {name}"))?;
                manifests.push((name, text));
            }
        }
        Ok(manifests)
    }
}

/// The file itself, or the manifests of a directory in the order of their names.
fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let metadata = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
        let file = entry.with_context(|| format!("cannot list {}", path.display()))?.path();
        let manifest =
            file.extension().is_some_and(|kind| ["yaml", "yml", "json"].iter().any(|one| kind == *one));
        if manifest && file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        bail!("{} holds no .yaml, .yml or .json file", path.display());
    }
    files.sort();
    Ok(files)
}

impl MeshArgs {
    fn injector(&self) -> anyhow::Result<Injector> {
        let path = self.trust_anchors.as_deref().context("--manual needs --trust-anchors FILE")?;
        let anchors =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let namespace = self.identity_namespace.as_ref().unwrap_or(&self.control_plane_namespace);
        let domain = TrustDomain::new(&self.trust_domain, namespace)?;
        let mut values = Values::kubernetes(domain, anchors);
        values.control_plane_namespace.clone_from(&self.control_plane_namespace);
        concat!("ringmail/cli ", env!("CARGO_PKG_VERSION")).clone_into(&mut values.created_by);
        values.token_audience.clone_from(&self.token_audience);
        values.ipv6 = !self.disable_ipv6;
        let service = |given: &Option<String>, name: &str, port: u16| {
            let usual =
                || format!("{name}.{}.svc.{}.:{port}", self.control_plane_namespace, self.trust_domain);
            given.clone().unwrap_or_else(usual)
        };
        values.identity_address = service(&self.identity_addr, "identity", 8080);
        values.destination_address = service(&self.destination_addr, "destination", 8086);
        values.policy_address = service(&self.policy_addr, "policy", 8090);
        if let Some(networks) = &self.cluster_networks {
            let read = |net: &str| {
                net.trim().parse().map_err(|_| anyhow!("--cluster-networks: `{net}` is no network"))
            };
            values.cluster_networks = networks.split(',').map(read).collect::<anyhow::Result<_>>()?;
        }
        Ok(Injector::new(values)?)
    }
}

impl Args for OptionFlags {
    fn augment_args(command: Command) -> Command {
        let flag = |option: &'static options::Opt| {
            let help = format!("{} Takes: {}", option.meaning, option.takes).replace('`', "");
            let flag = Arg::new(option.name).long(option.name).value_name("VALUE").help(help);
            flag.help_heading("Options of the proxy, written as annotations").allow_hyphen_values(true)
        };
        command.args(OPTIONS.iter().map(flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OptionFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let value = |name: &str| matches.get_one::<String>(name).cloned();
        let given = OPTIONS.iter().filter_map(|option| Some((option.name.to_owned(), value(option.name)?)));
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}

/// The mesh's setting is the command line's flag here.
fn of_flag(error: InjectError) -> anyhow::Error {
    match error {
        InjectError::Values { field, value, why } => anyhow!("RM1401: --{field}: `{value}`: {why}"),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(subcommand)]
        command: InjectCommand,
    }

    fn parse(line: &str) -> Result<InjectCommand, clap::Error> {
        let words = std::iter::once("ringmail").chain(line.split_whitespace());
        Program::try_parse_from(words).map(|program| program.command)
    }

    #[test]
    fn every_option_of_the_table_is_a_flag() {
        for option in OPTIONS {
            let line = format!("inject app.yaml --{} 1", option.name);
            let Ok(InjectCommand::Inject(args)) = parse(&line) else { panic!("{line}") };
            assert_eq!(args.options.0.get(option.name).map(String::as_str), Some("1"));
        }
    }

    #[test]
    fn manual_needs_trust_anchors_and_they_need_it() {
        assert!(parse("inject --manual app.yaml").is_err());
        assert!(parse("inject --trust-anchors ca.pem app.yaml").is_err());
        assert!(parse("inject --manual --trust-anchors ca.pem app.yaml").is_ok());
    }

    #[test]
    fn a_bad_value_names_the_flag() {
        let command = parse("inject --proxy-uid 0 app.yaml").expect("parsed");
        let error = run(command).expect_err("refused").to_string();
        assert!(error.starts_with("RM1401: --proxy-uid: `0`"), "{error}");
    }

    #[test]
    fn manifests_are_joined_by_markers_where_they_have_none() {
        let mut stream = String::new();
        for manifest in ["a: 1", "---\nb: 2\n", "", "c: 3\n"] {
            append(&mut stream, manifest);
        }
        assert_eq!(stream, "a: 1\n---\nb: 2\n---\nc: 3\n");
    }
}
