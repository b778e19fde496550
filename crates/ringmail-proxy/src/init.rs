//! `ringmail-proxy init`: what the init container runs.

use std::io;
use std::process::ExitCode;

pub use ringmail_redirect::init::InitArgs;

/// Sets the redirection and proves it. What was done goes to stdout, what failed to stderr with exit code 1.
pub fn run(args: &InitArgs) -> ExitCode {
    match ringmail_redirect::init::run(args, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::proxy::print_error(&error.to_string());
            ExitCode::FAILURE
        }
    }
}
