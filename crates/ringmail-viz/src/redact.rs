//! Which header values are never shown.

use ringmail_api::linkerd::http_types::Headers;

/// What stands in the place of a secret value.
pub const REDACTED: &[u8] = b"redacted";

/// Replaces the values of headers that carry secrets. Proxies do so too; this holds for proxies of other makes.
pub fn redact(headers: &mut Headers) {
    for header in &mut headers.headers {
        if is_secret(&header.name) {
            header.value = REDACTED.to_vec();
        }
    }
}

/// Whether a header's value is a secret, by its name in any letter case.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET.contains(&name.as_str()) || SECRET_PARTS.iter().any(|part| name.contains(part))
}

/// Headers whose value is a credential by their definition.
const SECRET: &[&str] =
    &["cookie", "cookie2", "set-cookie", "set-cookie2", "sec-websocket-key", "x-amz-security-token"];
/// Parts of names that people give to credentials.
const SECRET_PARTS: &[&str] = &[
    "authorization",
    "authentication-info",
    "api-key",
    "apikey",
    "auth-token",
    "access-token",
    "secret",
    "password",
    "csrf",
    "xsrf",
    "session",
    "credential",
    "jwt",
    "bearer",
    "private-token",
];

#[cfg(test)]
mod tests {
    use ringmail_api::linkerd::http_types::headers::Header;

    use super::*;

    #[test]
    fn the_name_of_a_secret_header_stays_and_its_value_goes() {
        let header = |name: &str| Header { name: name.to_owned(), value: b"s3cr3t".to_vec() };
        let names =
            ["Authorization", "proxy-authorization", "COOKIE", "Set-Cookie", "X-Api-Key", "x-session-id"];
        let mut headers =
            Headers { headers: names.iter().chain(&["accept", ":path"]).map(|name| header(name)).collect() };
        redact(&mut headers);
        for (index, header) in headers.headers.iter().enumerate() {
            let expected: &[u8] = if index < names.len() { REDACTED } else { b"s3cr3t" };
            assert_eq!(header.value, expected, "{}", header.name);
        }
    }
}
