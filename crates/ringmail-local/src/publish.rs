//! Ports of this machine that lead to services.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use k8s_openapi::api::core::v1::Service;
use serde::{Deserialize, Serialize};

use crate::manifest::Object;
use crate::problem::{Problem, Problems};

/// Annotation of a Service: an address of this machine (`127.0.0.1:8080`), or several separated by commas; `=PORT` after one names
/// the service's port where it has several (`127.0.0.1:8080=http`).
pub const ANNOTATION: &str = "local.ringmail.dev/publish";

/// One port of this machine and the service behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// Name in messages; the service's.
    pub name: String,
    /// Where this machine listens.
    pub listen: SocketAddr,
    /// The service's namespace.
    pub namespace: String,
    /// The service's name.
    pub service: String,
    /// The service's port.
    pub port: u16,
    /// The option or annotation that asked for it, for messages.
    pub asked_by: String,
}

/// Every publication that the options `--publish` and the annotations of `objects` ask for.
pub fn publications(options: &[String], objects: &[Object]) -> Result<Vec<Publication>, Problems> {
    let services: BTreeMap<(String, String), &Service> = objects
        .iter()
        .filter_map(|object| match object {
            Object::Service(service) => Some(((object.key().namespace, object.key().name), service)),
            _ => None,
        })
        .collect();
    let mut problems = Problems::default();
    let mut found: Vec<Publication> = Vec::new();
    for option in options {
        match from_option(option, &services) {
            Ok(publication) => found.push(publication),
            Err(problem) => problems.push(problem),
        }
    }
    for ((namespace, name), service) in &services {
        let Some(value) = service.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION)) else {
            continue;
        };
        for text in value.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            let asked_by = format!("annotation {ANNOTATION} of service/{name} in {namespace}");
            let (listen, port) = match text.rsplit_once('=') {
                Some((listen, port)) => (listen, Some(port)),
                None => (text, None),
            };
            match (address(listen, &asked_by), port_of(service, port, &asked_by)) {
                (Ok(listen), Ok(port)) => {
                    // An option for the same service and port stands in for what the manifest says.
                    let replaced = found.iter().any(|p| {
                        p.namespace == *namespace
                            && p.service == *name
                            && p.port == port
                            && p.asked_by.starts_with("--")
                    });
                    if !replaced {
                        let (namespace, service) = (namespace.clone(), name.clone());
                        found.push(Publication {
                            name: name.clone(),
                            listen,
                            namespace,
                            service,
                            port,
                            asked_by,
                        });
                    }
                }
                (listen, port) => problems.0.extend(listen.err().into_iter().chain(port.err())),
            }
        }
    }
    for (index, publication) in found.iter().enumerate() {
        if let Some(other) =
            found[..index].iter().find(|p| p.listen == publication.listen && p.listen.port() != 0)
        {
            problems.push(Problem::new(
                "RM1555",
                publication.asked_by.clone(),
                format!("{} is asked for already by {}", publication.listen, other.asked_by),
                "give one of them another port",
            ));
        }
    }
    problems.into_result()?;
    Ok(found)
}

/// `[NAME=][HOST:]HOSTPORT:svc/NS/NAME:PORT`, or `SERVICE.NS:PORT@HOST:HOSTPORT`.
fn from_option(
    option: &str,
    services: &BTreeMap<(String, String), &Service>,
) -> Result<Publication, Problem> {
    let asked_by = format!("--publish {option}");
    let bad = || {
        Problem::new(
            "RM1555",
            asked_by.clone(),
            "cannot be understood",
            "write `--publish web.ballot:80@127.0.0.1:8080` or `--publish 8080:svc/ballot/web:80`",
        )
    };
    let (name, listen, namespace, service, port) = if let Some((target, listen)) = option.rsplit_once('@') {
        let (target, port) = target.rsplit_once(':').ok_or_else(bad)?;
        let (service, namespace) = target.split_once('.').unwrap_or((target, "default"));
        (None, listen, namespace, service, port)
    } else {
        let (name, rest) = match option.split_once('=') {
            Some((name, rest)) => (Some(name), rest),
            None => (None, option),
        };
        let (listen, target) = rest.split_once(":svc/").ok_or_else(bad)?;
        let (target, port) = target.rsplit_once(':').ok_or_else(bad)?;
        let (namespace, service) = target.split_once('/').ok_or_else(bad)?;
        (name, listen, namespace, service, port)
    };
    if namespace.is_empty() || service.is_empty() {
        return Err(bad());
    }
    let listen = address(listen, &asked_by)?;
    let Some(known) = services.get(&(namespace.to_owned(), service.to_owned())) else {
        return Err(Problem::new(
            "RM1555",
            asked_by,
            format!("there is no Service `{service}` in namespace `{namespace}`"),
            "name a Service of the manifests",
        ));
    };
    let port = port_of(known, Some(port), &asked_by)?;
    let name = name.unwrap_or(service).to_owned();
    Ok(Publication { name, listen, namespace: namespace.into(), service: service.into(), port, asked_by })
}

/// `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`, or a port at the loopback address.
fn address(text: &str, asked_by: &str) -> Result<SocketAddr, Problem> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let port = text.strip_prefix("localhost:").unwrap_or(text);
    match port.parse::<u16>() {
        Ok(port) => Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)),
        Err(_) => Err(Problem::new(
            "RM1555",
            asked_by,
            format!("`{text}` is not an address and port of this machine"),
            "write `127.0.0.1:8080`",
        )),
    }
}

/// A service's port by number or name; without either, its only one.
fn port_of(service: &Service, wanted: Option<&str>, asked_by: &str) -> Result<u16, Problem> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let tcp: Vec<_> = ports.iter().filter(|p| p.protocol.as_deref().unwrap_or("TCP") == "TCP").collect();
    let found = match wanted {
        None if tcp.len() == 1 => tcp.first(),
        None => None,
        Some(wanted) => {
            tcp.iter().find(|p| p.port.to_string() == wanted || p.name.as_deref() == Some(wanted))
        }
    };
    found.and_then(|p| u16::try_from(p.port).ok()).ok_or_else(|| {
        let has: Vec<String> = tcp
            .iter()
            .map(|p| p.name.clone().map_or(p.port.to_string(), |n| format!("{} ({n})", p.port)))
            .collect();
        let has = if has.is_empty() { "no TCP port".to_owned() } else { has.join(", ") };
        let what = match wanted {
            Some(wanted) => format!("the Service has no TCP port `{wanted}`; it has {has}"),
            None => format!("the Service has several ports: {has}"),
        };
        Problem::new("RM1555", asked_by, what, "name one of its ports")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    fn objects(annotation: &str) -> Vec<Object> {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: ballot, annotations: \
             {{{ANNOTATION}: '{annotation}'}}}}\nspec: {{selector: {{a: b}}, ports: [{{name: http, port: 80}}, \
             {{name: admin, port: 81}}]}}\n"
        );
        vec![Object::parse(&manifest::read_text("t", &text).unwrap()[0]).unwrap().0]
    }

    fn shown(options: &[&str], annotation: &str) -> Vec<String> {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        match publications(&options, &objects(annotation)) {
            Ok(found) => found.iter().map(|p| format!("{} {}->{}", p.name, p.listen, p.port)).collect(),
            Err(problems) => problems.0.iter().map(|p| p.code.clone()).collect(),
        }
    }

    #[test]
    fn options_and_annotations_are_understood() {
        assert_eq!(
            shown(&[], "127.0.0.1:8080=http, 8081=81"),
            ["web 127.0.0.1:8080->80", "web 127.0.0.1:8081->81"]
        );
        assert_eq!(shown(&["web.ballot:80@[::1]:8080"], ""), ["web [::1]:8080->80"]);
        assert_eq!(shown(&["page=8080:svc/ballot/web:admin"], ""), ["page 127.0.0.1:8080->81"]);
        assert_eq!(shown(&["web.ballot:80@127.0.0.1:9090"], "8080=80"), ["web 127.0.0.1:9090->80"]);
    }

    #[test]
    fn what_cannot_be_published_is_refused() {
        for option in
            ["x", "web.ballot:82@8080", "web.other:80@8080", "web.ballot:80@nowhere", "8080:svc/web:80"]
        {
            assert_eq!(shown(&[option], ""), ["RM1555"], "{option}");
        }
        assert_eq!(shown(&[], "8080"), ["RM1555"]);
        assert_eq!(shown(&["web.ballot:80@8080", "web.ballot:81@8080"], ""), ["RM1555"]);
    }
}
