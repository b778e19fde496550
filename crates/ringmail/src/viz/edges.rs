//! `ringmail viz edges`.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use ringmail_api::viz::EdgesRequest;
use ringmail_viz::resource::{Resource, ResourceError};
use ringmail_viz::table;

use super::{DEFAULT_NAMESPACE, connect, print, usage};
use crate::Which;

/// `edges KIND`
#[derive(Debug, Args)]
pub(crate) struct EdgesArgs {
    /// A kind of resource: deploy, pod, sts, ds, rs, rc, job, cronjob
    #[arg(required = true, value_name = "KIND")]
    resource: Vec<String>,
    /// The namespace; rows from or to it are listed
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// `table`, `wide` (with identities and handshakes) or `json`
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    output: String,
    /// How long closed connections count, such as `30s` or `5m` (at most 10m)
    #[arg(long, default_value = "1m", value_name = "TIME", value_parser = duration)]
    window: Duration,
    /// Also the mesh's own connections: proxies calling the control plane, viz calling proxies
    #[arg(long)]
    mesh_traffic: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Table,
    Wide,
    Json,
}

impl EdgesArgs {
    /// What viz is asked. `outer` is the namespace given before the command's name.
    pub(crate) fn request(&self, outer: Option<String>) -> Result<EdgesRequest, ResourceError> {
        let kind = Resource::kind_for_edges(&self.resource)?;
        let namespace = self.namespace.clone().or(outer).unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        Ok(EdgesRequest {
            kind: kind.name().to_owned(),
            namespace: if self.all_namespaces { String::new() } else { namespace },
            window_ms: u64::try_from(self.window.as_millis()).unwrap_or(u64::MAX),
            mesh_traffic: self.mesh_traffic,
        })
    }

    fn format(&self) -> Option<Output> {
        match self.output.as_str() {
            "table" | "" => Some(Output::Table),
            "wide" => Some(Output::Wide),
            "json" => Some(Output::Json),
            _ => None,
        }
    }
}

pub(super) async fn run(args: EdgesArgs, outer: Option<String>, which: &Which) -> anyhow::Result<ExitCode> {
    let Some(format) = args.format() else { return Ok(usage(&"--output supports table, json and wide")) };
    let request = match args.request(outer) {
        Ok(request) => request,
        Err(error) => return Ok(usage(&error)),
    };
    let answer = match connect(which).await {
        Ok(mut viz) => viz.edges(request).await.map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("Edges API error: {error:#}");
            return Ok(ExitCode::FAILURE);
        }
    };
    for pod in &answer.unobserved {
        eprintln!("warning: not all is known of {pod}");
    }
    let color =
        std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let text = match format {
        Output::Json => table::json(&answer.edges)?,
        _ if answer.edges.is_empty() => {
            eprintln!("No edges found.");
            String::new()
        }
        Output::Table => table::table(&answer.edges, color),
        Output::Wide => table::wide(&answer.edges, color),
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err("a time is a number with a unit: `500ms`, `30s`, `5m`".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{digits}` is no whole number"))?;
    match number.checked_mul(unit) {
        Some(1..=MAX_WINDOW_MS) => Ok(Duration::from_millis(number * unit)),
        _ => {
            Err("the window is more than 0 and at most 10m: closed connections are kept no longer".to_owned())
        }
    }
}

const MAX_WINDOW_MS: u64 = ringmail_viz::store::KEEP_MS;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_a_number_with_a_unit_and_has_a_limit() {
        for (text, expected) in
            [("30s", Some(30_000)), ("5m", Some(300_000)), ("10m", Some(600_000)), ("500ms", Some(500))]
        {
            assert_eq!(duration(text).ok(), expected.map(Duration::from_millis), "{text}");
        }
        for wrong in ["", "5", "m", "0s", "11m", "1h", "-1s", "18446744073709551615m"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
