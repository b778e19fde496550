//! The one printer of lines for people: a reader that has left, as `head` does, is no reason to fail.

/// Prints a line on standard output.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}

pub(crate) use say;
