//! What tap prints: requests as three lines, connections as two (features.md 2.2).
//!
//! Start here: [`Printer`] turns what viz sends into text.

mod json;
mod line;

use prost::Message as _;
use ringmail_api::flows;
use ringmail_api::linkerd::tap::TapEvent;
use ringmail_api::viz::{TapItem, tap_item};
use ringmail_vocab::Flow;

pub use self::line::grpc_status_name;

/// The form of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One line an event.
    #[default]
    Default,
    /// The line, then the labels of both ends.
    Wide,
    /// One indented object an event, one after the other.
    Json,
}

/// What is to be printed, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Printed {
    /// Output, its last newline included.
    Out(String),
    /// A remark for standard error.
    Note(String),
}

/// What came from viz and cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrintError {
    /// Not the encoding of what it should be.
    #[error(
        "RM1707: viz sent {what} that cannot be read: {reason}; compare `ringmail --version` with the mesh's"
    )]
    Malformed {
        /// What it should be.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl Format {
    /// One item as text; `None` for one that holds nothing.
    pub fn print(self, item: &TapItem) -> Result<Option<Printed>, PrintError> {
        let malformed = |what: &'static str, reason: &dyn std::fmt::Display| PrintError::Malformed {
            what,
            reason: reason.to_string(),
        };
        let text = match &item.item {
            None => return Ok(None),
            Some(tap_item::Item::Note(note)) => return Ok(Some(Printed::Note(note.text.clone()))),
            Some(tap_item::Item::Event(event)) => {
                let event =
                    TapEvent::decode(event.as_slice()).map_err(|error| malformed("a request", &error))?;
                match self {
                    Self::Json => {
                        json::event(&event, item).map_err(|error| malformed("a request", &error))?
                    }
                    Self::Default => line::event(&event),
                    Self::Wide => line::event_wide(&event, item),
                }
            }
            Some(tap_item::Item::Flow(flow)) => {
                let flow = flows::Flow::decode(flow.as_slice())
                    .map_err(|error| malformed("a connection", &error))?;
                let flow = Flow::try_from(flow).map_err(|error| malformed("a connection", &error))?;
                match self {
                    Self::Json => {
                        json::flow(&flow, item).map_err(|error| malformed("a connection", &error))?
                    }
                    Self::Default => line::flow(&flow),
                    Self::Wide => line::flow_wide(&flow, item),
                }
            }
        };
        Ok(Some(Printed::Out(text + "\n")))
    }
}
