//! The authority, its anchors and tokens from outside: one module a theme.

mod issuance;
mod loading;
mod noise;
mod support;
mod tokens;
