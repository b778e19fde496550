//! Viz from outside: one module a theme.

mod collecting;
mod fake;
mod joining;
mod properties;
mod registry;
mod rows;
mod storing;
mod support;
mod tap_text;
mod tapping;
