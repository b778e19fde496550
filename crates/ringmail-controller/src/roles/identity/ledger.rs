//! The record of issuance.

use std::collections::VecDeque;
use std::time::SystemTime;

use parking_lot::Mutex;
use ringmail_identity::authority::Issued;
use ringmail_identity::certificate::timestamp;
use serde::Serialize;

/// The latest issuances, a bounded number; the log has all of them.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<VecDeque<Issuance>>);

/// One certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Issuance {
    /// Whose it is.
    pub identity: String,
    /// Its serial number in hexadecimal.
    pub serial: String,
    /// When it was issued (RFC 3339).
    pub issued: String,
    /// Its last moment (RFC 3339).
    pub until: String,
    /// SHA-256 of its DER in hexadecimal.
    pub sha256: String,
}

impl Issuance {
    /// The record of what was issued at `now`.
    pub fn of(issued: &Issued, now: SystemTime) -> Self {
        Self {
            identity: issued.identity.to_string(),
            serial: issued.serial.clone(),
            issued: timestamp(now),
            until: timestamp(issued.not_after),
            sha256: issued.fingerprint.clone(),
        }
    }
}

impl Ledger {
    /// Adds an issuance; the oldest beyond the bound goes.
    pub fn record(&self, issuance: Issuance) {
        let mut kept = self.0.lock();
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(issuance);
    }

    /// The latest issuances, the newest first.
    pub fn latest(&self) -> Vec<Issuance> {
        self.0.lock().iter().rev().cloned().collect()
    }
}

const KEPT: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_keeps_the_newest_and_no_more_than_its_bound() {
        let ledger = Ledger::default();
        for number in 0..KEPT + 2 {
            let text = String::new;
            ledger.record(Issuance {
                identity: text(),
                serial: number.to_string(),
                issued: text(),
                until: text(),
                sha256: text(),
            });
        }
        let latest = ledger.latest();
        assert_eq!(latest.len(), KEPT);
        assert_eq!((latest[0].serial.as_str(), latest[KEPT - 1].serial.as_str()), ("4097", "2"));
    }
}
