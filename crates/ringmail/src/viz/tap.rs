//! `ringmail viz tap`.

use std::process::ExitCode;

use clap::Args;
use ringmail_api::viz::TapRequest;
use ringmail_viz::resource::{Kind, Resource, ResourceError};
use ringmail_viz::tap::{Format, Printed};

use super::{DEFAULT_NAMESPACE, connect, print, usage};
use crate::Which;

/// `tap RESOURCE`
#[derive(Debug, Args)]
pub(crate) struct TapArgs {
    /// What is watched: `deploy/web`, `deploy web`, `deploy`, `po/web-0`, `ns/ballot`
    #[arg(required = true, value_name = "RESOURCE")]
    resource: Vec<String>,
    /// The namespace of the resource
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Only requests to this resource, such as `deploy/emoji` or `svc/emoji`
    #[arg(long, value_name = "RESOURCE")]
    to: Option<String>,
    /// The namespace of `--to`; alone: only requests to this namespace
    #[arg(long, value_name = "NAMESPACE")]
    to_namespace: Option<String>,
    /// Only requests with this method
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Only requests whose path begins so
    #[arg(long, value_name = "PREFIX")]
    path: Option<String>,
    /// Only requests to this authority (`Host`), such as `web.ballot:80`
    #[arg(long, value_name = "AUTHORITY")]
    authority: Option<String>,
    /// Only requests with this scheme
    #[arg(long, value_name = "SCHEME")]
    scheme: Option<String>,
    /// At most so many requests a second, over all pods
    #[arg(long, default_value_t = 100.0, value_name = "NUMBER")]
    max_rps: f32,
    /// Only pods with these labels, such as `app=web,tier!=cache`
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// `wide` (with labels of both ends) or `json`
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<String>,
    /// Also headers and trailers, with `-o json`; the values of those that carry secrets are never shown
    #[arg(long)]
    headers: bool,
    /// Connections as they open and close, instead of requests
    #[arg(long)]
    tcp: bool,
}

/// Why the arguments make no tap.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TapArgsError {
    #[error(transparent)]
    Resource(#[from] ResourceError),
    #[error("--output supports wide and json")]
    Output,
    #[error("`--headers` shows headers in JSON; add `-o json`")]
    HeadersWithoutJson,
}

impl TapArgs {
    /// What viz is asked. `outer` is the namespace given before the command's name.
    pub(crate) fn request(&self, outer: Option<String>) -> Result<TapRequest, TapArgsError> {
        let resource = Resource::parse(&self.resource)?;
        if resource.kind == Kind::Service {
            return Err(ResourceError::NotSupported(resource.kind.name().to_owned()).into());
        }
        if self.headers && self.format()? != Format::Json {
            return Err(TapArgsError::HeadersWithoutJson);
        }
        let to = self.to.as_ref().map(|to| Resource::parse(std::slice::from_ref(to))).transpose()?;
        let text = |option: &Option<String>| option.clone().unwrap_or_default();
        Ok(TapRequest {
            kind: resource.kind.name().to_owned(),
            name: resource.name.unwrap_or_default(),
            namespace: self.namespace.clone().or(outer).unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
            to_kind: to.as_ref().map(|to| to.kind.name().to_owned()).unwrap_or_default(),
            to_name: to.and_then(|to| to.name).unwrap_or_default(),
            to_namespace: text(&self.to_namespace),
            method: text(&self.method),
            path: text(&self.path),
            authority: text(&self.authority),
            scheme: text(&self.scheme),
            max_rps: self.max_rps,
            selector: text(&self.selector),
            headers: self.headers,
            tcp: self.tcp,
        })
    }

    fn format(&self) -> Result<Format, TapArgsError> {
        match self.output.as_deref() {
            None | Some("") => Ok(Format::Default),
            Some("wide") => Ok(Format::Wide),
            Some("json") => Ok(Format::Json),
            Some(_) => Err(TapArgsError::Output),
        }
    }
}

pub(super) async fn run(args: TapArgs, outer: Option<String>, which: &Which) -> anyhow::Result<ExitCode> {
    let (request, format) = match args.request(outer).and_then(|request| Ok((request, args.format()?))) {
        Ok(both) => both,
        Err(error) => return Ok(usage(&error)),
    };
    let mut tap = connect(which).await?.tap(request).await?;
    while let Some(item) = tap.next().await? {
        match format.print(&item)? {
            // Nobody reads any more.
            Some(Printed::Out(text)) if !print(&text)? => return Ok(ExitCode::SUCCESS),
            Some(Printed::Note(text)) => eprintln!("note: {text}"),
            Some(Printed::Out(_)) | None => {}
        }
    }
    anyhow::bail!("RM1705: viz ended the tap");
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        tap: TapArgs,
    }

    fn request(line: &str) -> Result<TapRequest, TapArgsError> {
        Cli::try_parse_from(std::iter::once("tap").chain(line.split(' '))).expect(line).tap.request(None)
    }

    #[test]
    fn every_option_reaches_viz() {
        let line = "deploy/web -n ballot --to svc/emoji --to-namespace other --method POST --path /api --authority web:80 \
                    --scheme http --max-rps 2.5 -l app=web -o json --headers";
        let request = request(&line.split_whitespace().collect::<Vec<_>>().join(" ")).expect("fine");
        let expected = TapRequest {
            kind: "deployment".to_owned(),
            name: "web".to_owned(),
            namespace: "ballot".to_owned(),
            to_kind: "service".to_owned(),
            to_name: "emoji".to_owned(),
            to_namespace: "other".to_owned(),
            method: "POST".to_owned(),
            path: "/api".to_owned(),
            authority: "web:80".to_owned(),
            scheme: "http".to_owned(),
            max_rps: 2.5,
            selector: "app=web".to_owned(),
            headers: true,
            tcp: false,
        };
        assert_eq!(request, expected);
    }

    #[test]
    fn arguments_that_make_no_tap_are_refused_with_the_reason() {
        for (line, reason) in [
            ("svc/web", "Resource type is not supported: service"),
            ("deploy/web --headers", "add `-o json`"),
            ("deploy/web --to nothing/x", "`nothing` is no kind of resource"),
            ("deploy/web more words", "expected `<kind>`"),
        ] {
            let error = request(line).expect_err(line).to_string();
            assert!(error.contains(reason), "{line}: {error}");
        }
        assert!(request("deploy/web").is_ok());
    }
}
