//! Start here.
