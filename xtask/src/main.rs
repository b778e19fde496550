//! Start here.
fn main() {}
