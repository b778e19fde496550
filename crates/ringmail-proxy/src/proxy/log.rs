//! The log: to stderr, plain or JSON, with a filter that the admin port may change.

use std::fmt;
use std::io::{self, IsTerminal};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::admin::LogFilter;
use crate::config::LogFormat;

/// The running log's filter.
pub(super) struct Log(reload::Handle<EnvFilter, Registry>);

/// Starts the log.
pub(super) fn start(filter: &str, format: LogFormat) -> Result<Log, String> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines: Box<dyn Layer<_> + Send + Sync> = match format {
        LogFormat::Plain => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|error| error.to_string())?;
    Ok(Log(handle))
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|error| format!("`{}` is no filter: {error}", filter.escape_debug()))
}

impl LogFilter for Log {
    fn get(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }

    fn set(&self, filter: &str) -> Result<(), String> {
        // An empty filter would silence errors too; whoever wants silence says `off`.
        if filter.is_empty() {
            return Err("an empty filter".to_owned());
        }
        self.0.reload(parse(filter)?).map_err(|error| error.to_string())
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Log")
    }
}
