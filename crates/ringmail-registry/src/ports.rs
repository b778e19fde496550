//! Sets of ports as annotations write them: `25,3306,5000-5010`.

use std::fmt;
use std::ops::RangeInclusive;

/// A set of TCP ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortSet(Vec<(u16, u16)>);

impl PortSet {
    /// Reads a comma list of numbers and ranges; blanks and empty items are tolerated. `named` resolves an item that
    /// is a name.
    pub fn parse(text: &str, named: impl Fn(&str) -> Option<u16>) -> Result<Self, PortSetError> {
        let mut ranges = Vec::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            ranges.push(range(item, &named)?);
        }
        ranges.sort_unstable();
        Ok(Self(ranges))
    }

    /// Whether the port is in the set.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    /// Whether the set has no port.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges of the set, each with both ends included.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u16>> + '_ {
        self.0.iter().map(|(first, last)| *first..=*last)
    }
}

impl FromIterator<u16> for PortSet {
    fn from_iter<T: IntoIterator<Item = u16>>(ports: T) -> Self {
        let mut ranges: Vec<_> = ports.into_iter().map(|port| (port, port)).collect();
        ranges.sort_unstable();
        Self(ranges)
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (first, last)) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

/// Why a text is no set of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortSetError {
    /// An item is neither a port, nor a range, nor a known port name.
    #[error("`{0}` is no port (1-65535), no range such as `5000-5010` and no port name of this object")]
    Item(String),
    /// A range ends before it starts.
    #[error("the range `{0}` ends before it starts")]
    Backwards(String),
}

fn range(item: &str, named: impl Fn(&str) -> Option<u16>) -> Result<(u16, u16), PortSetError> {
    let bad = || PortSetError::Item(item.to_owned());
    let number = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
    if let Some(port) = number(item).or_else(|| named(item)) {
        return Ok((port, port));
    }
    let (first, last) = item.split_once('-').ok_or_else(bad)?;
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        (Some(_), Some(_)) => Err(PortSetError::Backwards(item.to_owned())),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PortSet, PortSetError> {
        PortSet::parse(text, |name| (name == "http-alt").then_some(8080))
    }

    #[test]
    fn a_list_of_ports_ranges_and_names_is_read() {
        let set = parse(" 25, 5000-5010,,http-alt ").expect("valid");
        assert!(set.contains(25) && set.contains(5000) && set.contains(5010) && set.contains(8080));
        assert!(!set.contains(26) && !set.contains(4999) && !set.contains(5011));
        assert_eq!(set.to_string(), "25,5000-5010,8080");
        assert!(parse("").expect("empty is a set").is_empty());
    }

    #[test]
    fn what_is_no_port_is_named() {
        assert_eq!(parse("25,x"), Err(PortSetError::Item("x".to_owned())));
        assert_eq!(parse("0"), Err(PortSetError::Item("0".to_owned())));
        assert_eq!(parse("65536"), Err(PortSetError::Item("65536".to_owned())));
        assert_eq!(parse("9-8"), Err(PortSetError::Backwards("9-8".to_owned())));
    }
}
