//! What was done to each object, for people.

use std::fmt::Write as _;

use crate::SkipReason;
use crate::error::Warning;

/// What was done to one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its kind, in lower case.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What was done.
    pub status: Status,
    /// What its author should know.
    pub warnings: Vec<Warning>,
}

impl Report {
    /// `deployment/web`.
    pub fn object(&self) -> String {
        format!("{}/{}", self.kind, self.name)
    }
}

/// What was done to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is to be, or has been, injected.
    Injected,
    /// A namespace was asked to have its pods injected.
    Annotated,
    /// The proxy was taken out.
    Uninjected,
    /// Nothing, for these reasons.
    Skipped(Vec<SkipReason>),
    /// Nothing, since it does not say what it is.
    NoKind,
}

impl Status {
    /// Whether anything was done.
    pub fn is_change(&self) -> bool {
        matches!(self, Self::Injected | Self::Annotated | Self::Uninjected)
    }
}

/// The report on a run: what to look at, then one line for each object.
///
/// With `verbose` it also says what was looked at and found in order. `injecting` is false for uninjection, of which
/// there is less to say.
pub fn render(reports: &[Report], verbose: bool, injecting: bool) -> String {
    let mut text = String::from("\n");
    let mut note = |mark: char, line: &str| {
        let _infallible = writeln!(text, "{mark} {line}");
    };
    if injecting {
        let with = |reason: SkipReason| {
            let has = |report: &&Report| matches!(&report.status, Status::Skipped(reasons) if reasons.contains(&reason));
            let found: Vec<String> = reports.iter().filter(has).map(Report::object).collect();
            found.join(", ")
        };
        let udp =
            |report: &&Report| report.warnings.iter().any(|warning| matches!(warning, Warning::Udp { .. }));
        let udp: Vec<String> = reports.iter().filter(udp).map(Report::object).collect();
        for (found, bad, good) in [
            (
                with(SkipReason::HostNetwork),
                "\"hostNetwork: true\" detected in",
                "pods do not use host networking",
            ),
            (with(SkipReason::SidecarExists), "a proxy is there already in", "pods do not have a proxy yet"),
            (
                with(SkipReason::AnnotationDisabled),
                "\"ringmail.dev/inject: disabled\" annotation set on",
                "pods are not annotated to disable injection",
            ),
        ] {
            match found.as_str() {
                "" if verbose => note('√', good),
                "" => {}
                objects => note('‼', &format!("{bad} {objects}")),
            }
        }
        let supported = reports.iter().any(|report| match &report.status {
            Status::Skipped(reasons) => !reasons.contains(&SkipReason::UnsupportedResource),
            status => *status != Status::NoKind,
        });
        match supported {
            true if verbose => note('√', "at least one resource can be injected or annotated"),
            true => {}
            false => note('‼', "no supported objects found"),
        }
        match udp.join(", ").as_str() {
            "" if verbose => note('√', "pod specs do not include UDP ports"),
            "" => {}
            objects => note('‼', &format!("{objects} uses \"protocol: UDP\"")),
        }
    }
    for warning in reports.iter().flat_map(|report| &report.warnings) {
        if !matches!(warning, Warning::Udp { .. }) {
            note('‼', &warning.to_string());
        }
    }
    if !text.ends_with("\n\n") && text != "\n" {
        text.push('\n');
    }
    for report in reports {
        let did = match report.status {
            Status::Injected => "injected",
            Status::Annotated => "annotated",
            Status::Uninjected => "uninjected",
            Status::Skipped(_) => "skipped",
            Status::NoKind => {
                text.push_str("document missing \"kind\" field, skipped\n");
                continue;
            }
        };
        let _infallible = writeln!(text, "{} \"{}\" {did}", report.kind, report.name);
    }
    text.push('\n');
    text
}
