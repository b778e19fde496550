//! What ends a connection badly, with both sides named and a code to look up; rate limited for each code, and what was
//! left out is counted.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use ringmail_vocab::{ClosedBy, Direction};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $text:literal;)+) => {
        /// The codes of the data path, as `docs/errors.md` explains them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name,)+ }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Such as `RM1210`.
            pub fn id(self) -> &'static str {
                match self { $(Self::$name => $id),+ }
            }

            /// One sentence that says what happened.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }
        }
    };
}

codes! {
    /// The kernel knows no original destination.
    NoOriginalDestination = "RM1200", "the connection was not redirected to this proxy: its original destination is unknown";
    /// The destination is this proxy's own listener.
    Loop = "RM1201", "the destination is this proxy itself";
    /// An inbound connection for another pod's address.
    NotThisPod = "RM1202", "the destination is no address of this pod";
    /// A connection addressed to the inbound port.
    Direct = "RM1203", "connections addressed to the proxy's own inbound port are not taken: call the application's port";
    /// Discovery did not answer in time.
    DiscoveryTimeout = "RM1204", "the destination is inside the mesh's networks and discovery did not say what it is in time";
    /// The service has no endpoint.
    NoEndpoints = "RM1205", "the service has no ready endpoint";
    /// Nothing answers.
    ConnectFailed = "RM1206", "no connection to the destination";
    /// A bound is reached.
    Overloaded = "RM1207", "this proxy is at its bound";
    /// The peer's certificate is of another mesh.
    UnknownIssuer = "RM1210", "the peer's certificate does not chain to this mesh's trust anchors";
    /// The peer's certificate is outside its validity.
    CertificateExpired = "RM1211", "the peer's certificate is outside its validity";
    /// The peer proved another name.
    WrongIdentity = "RM1212", "the peer proved another name than discovery told";
    /// The peer did not accept our certificate.
    RefusedByPeer = "RM1213", "the peer refused the handshake";
    /// The handshake broke.
    HandshakeFailed = "RM1214", "the TLS handshake failed";
    /// The handshake took too long.
    HandshakeTimeout = "RM1215", "the TLS handshake did not end in time";
    /// There is no certificate yet.
    NoCertificate = "RM1216", "this proxy has no certificate yet";
    /// A TLS stream was cut.
    Truncated = "RM1217", "the TLS stream ended without close_notify, so it may have been cut; passed on as a reset";
    /// A silent client.
    SilentClient = "RM1218", "the client sent nothing, and is not known to be unmeshed";
    /// A TLS record that cannot be believed.
    BrokenStream = "RM1219", "the TLS stream broke after the handshake";
    /// Policy.
    PolicyDenied = "RM1220", "policy does not let this client call this port";
    /// Policy changed.
    PolicyChanged = "RM1221", "a change of policy ended the connection";
    /// A policy that breaks its own rules.
    PolicyInvalid = "RM1222", "the control plane sent a policy that is none; this port is closed until it sends a valid one";
    /// A request outside the probe exemption.
    ProbeRefused = "RM1223", "this port takes its probes' requests only, and the request was none of them";
    /// The drain's deadline.
    Drained = "RM1224", "the proxy's grace period is over";
    /// Accept failed.
    AcceptFailed = "RM1230", "no connection can be accepted";
    /// The destination service does not answer.
    DiscoveryWatch = "RM1231", "discovery does not answer; what was last known stays in force";
    /// The policy service does not answer.
    PolicyWatch = "RM1232", "the policy service does not answer; what was last known stays in force";
    /// The sources service does not answer.
    SourcesWatch = "RM1233", "discovery does not say whether a silent client is meshed";
    /// An endpoint that cannot be used.
    EndpointUnusable = "RM1234", "discovery sent an endpoint whose identity cannot be checked; it is left out";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// The end of one connection, for the log.
pub struct Ended<'a> {
    /// The code.
    pub code: Code,
    /// Which side this proxy is on.
    pub direction: Direction,
    /// The client's address.
    pub src: SocketAddr,
    /// The server's address, as far as it is known.
    pub dst: SocketAddr,
    /// Where the client meant to go.
    pub original_dst: SocketAddr,
    /// This proxy's identity.
    pub local: &'a dyn fmt::Display,
    /// The other end's identity: proven, claimed or expected, as `detail` says.
    pub peer: Option<&'a dyn fmt::Display>,
    /// The rule that decided: a policy's name, `discovery`, `tls`.
    pub rule: &'a str,
    /// Who ended it.
    pub by: ClosedBy,
    /// What exactly happened.
    pub detail: &'a dyn fmt::Display,
}

impl Ended<'_> {
    /// Writes the line, unless this code has had its share for now.
    pub fn log(&self) {
        let Some(suppressed) = admit(self.code) else { return };
        let peer: &dyn fmt::Display = self.peer.unwrap_or(&"-");
        tracing::warn!(
            code = self.code.id(),
            direction = self.direction.label(),
            src = %self.src,
            dst = %self.dst,
            original_dst = %self.original_dst,
            local = %self.local,
            peer = %peer,
            rule = self.rule,
            closed_by = self.by.label(),
            suppressed,
            "{}: {}",
            self.code.text(),
            self.detail
        );
    }
}

/// Writes a line that is about no single connection, under the same limit.
pub fn trouble(code: Code, about: &dyn fmt::Display, detail: &dyn fmt::Display) {
    if let Some(suppressed) = admit(code) {
        tracing::warn!(code = code.id(), about = %about, suppressed, "{}: {detail}", code.text());
    }
}

/// Whether a line of this code may be written now, and how many were left out since the last one.
fn admit(code: Code) -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    SHARES[code as usize].admit(now)
}

/// Lines of one code in the present window.
pub(crate) struct Share {
    /// The window's start in seconds in the upper half, lines in it in the lower.
    window: AtomicU64,
    suppressed: AtomicU64,
}

impl Share {
    pub(crate) const fn new() -> Self {
        Self { window: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    pub(crate) fn admit(&self, now: u64) -> Option<u64> {
        let start = now / WINDOW;
        let before = self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |window| {
            let lines = if window >> 32 == start { (window & u64::from(u32::MAX)) + 1 } else { 1 };
            Some((start << 32) | lines.min(u64::from(u32::MAX)))
        });
        let lines = match before {
            Ok(window) | Err(window) if window >> 32 == start => window & u64::from(u32::MAX),
            _ => 0,
        };
        if lines < LINES {
            Some(self.suppressed.swap(0, Ordering::Relaxed))
        } else {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

static SHARES: [Share; Code::ALL.len()] = [const { Share::new() }; Code::ALL.len()];
/// Seconds.
const WINDOW: u64 = 10;
/// Lines of one code in a window.
const LINES: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_of_this_range() {
        let ids: std::collections::BTreeSet<_> = Code::ALL.iter().map(|code| code.id()).collect();
        assert_eq!(ids.len(), Code::ALL.len());
        assert!(ids.iter().all(|id| id.starts_with("RM12")));
    }

    #[test]
    fn a_flood_is_cut_counted_and_forgiven() {
        let share = Share::new();
        let admitted = (0..100).filter(|_| share.admit(1_000).is_some()).count();
        assert_eq!(admitted as u64, LINES);
        assert_eq!(share.admit(1_000 + WINDOW), Some(100 - LINES));
        assert_eq!(share.admit(1_000 + WINDOW), Some(0));
    }
}
