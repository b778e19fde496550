//! Lists of ports as annotations write them: `25,587,3306-3310,mysql`.

use std::fmt;

/// Ports, in the order in which they were written, each given by number; named ports are already resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ports(Vec<(u16, u16)>);

impl Ports {
    /// Reads a list; `named` gives the numbers of a container port's name. Names that it does not know are returned too.
    pub(crate) fn read(text: &str, named: impl Fn(&str) -> Vec<u16>) -> Result<(Self, Vec<String>), String> {
        let (mut ports, mut unknown) = (Vec::new(), Vec::new());
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            if is_name(item) {
                let numbers = named(item);
                if numbers.is_empty() {
                    unknown.push(item.to_owned());
                }
                ports.extend(numbers.into_iter().map(|port| (port, port)));
                continue;
            }
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let number = |part: &str| part.trim().parse::<u16>().ok().filter(|port| *port > 0);
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => ports.push((first, last)),
                _ => {
                    return Err(format!(
                        "`{item}` is neither a port (1 to 65535) nor a range such as 3306-3310"
                    ));
                }
            }
        }
        Ok((Self(ports), unknown))
    }

    /// Single ports, each once, in order.
    pub(crate) fn of_numbers(numbers: impl IntoIterator<Item = u16>) -> Self {
        let unique: std::collections::BTreeSet<u16> = numbers.into_iter().collect();
        Self(unique.into_iter().map(|port| (port, port)).collect())
    }

    /// These, then the others that are not yet among them.
    pub(crate) fn and(mut self, others: &Self) -> Self {
        for range in &others.0 {
            if !self.0.contains(range) {
                self.0.push(*range);
            }
        }
        self
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

/// A port's name has a letter (RFC 6335 5.1), so it cannot be taken for a number or range.
fn is_name(item: &str) -> bool {
    item.bytes().any(|b| b.is_ascii_lowercase())
        && item.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_with_ranges_and_names_are_read_and_written() {
        let named = |name: &str| if name == "mysql" { vec![3306] } else { Vec::new() };
        let (ports, unknown) = Ports::read(" 25, mysql ,8000-8010,,other", named).expect("valid");
        assert_eq!((ports.to_string().as_str(), unknown), ("25,3306,8000-8010", vec!["other".to_owned()]));
        for bad in ["0", "9-1", "70000", "1-x!", "X"] {
            assert!(Ports::read(bad, named).expect_err(bad).contains(bad));
        }
        let one = Ports::of_numbers([4191, 4190, 4190]);
        assert_eq!(one.and(&Ports(vec![(25, 25), (4190, 4190)])).to_string(), "4190,4191,25");
    }
}
