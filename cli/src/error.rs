//! The one error type of the command line: what failed, why, what to do next, and with which code `pf` ends.

use crate::exit::Exit;
use std::error::Error;
use std::fmt;

/// What every verb returns.
pub type Result<T> = std::result::Result<T, CliError>;

/// An error on its way to the person who must act. Printed once, by [`CliError::print`], in `main`.
#[derive(Debug)]
pub struct CliError {
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
    /// The code that `pf` ends with.
    pub exit: Exit,
    /// The broker's short word for it, for `--json`.
    pub code: Option<String>,
}

impl CliError {
    /// An error with a message: a lowercase fragment that names operation and object.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        CliError { message: message.into(), hint: None, source: None, exit, code: None }
    }

    /// The command line or the configuration is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        CliError::new(Exit::Usage, message)
    }

    /// A fault of `pf` or of the machine under it.
    pub fn internal(message: impl Into<String>) -> Self {
        CliError::new(Exit::Internal, message)
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds to what failed what became of it.
    #[must_use]
    pub fn also(mut self, consequence: &str) -> Self {
        self.message = format!("{}; {consequence}", self.message);
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The whole of it as lines: `error: ..`, a `caused by: ..` for each cause, `hint: ..`.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("error: {}", self.message)];
        let mut cause = self.source();
        while let Some(error) = cause {
            lines.push(format!("  caused by: {error}"));
            cause = error.source();
        }
        lines.extend(self.hint.iter().map(|hint| format!("hint: {hint}")));
        lines
    }

    /// The same in one line, without its first word.
    #[must_use]
    pub fn one_line(&self) -> String {
        let lines = self.lines();
        let words = lines.iter().map(|line| line.trim_start().trim_start_matches("error: "));
        words.collect::<Vec<_>>().join("; ")
    }

    /// Writes it to stderr; with `json` as one JSON object, so that scripts need not parse prose.
    pub fn print(&self, json: bool) {
        if json {
            let mut causes = Vec::new();
            let mut cause = self.source();
            while let Some(error) = cause {
                causes.push(error.to_string());
                cause = error.source();
            }
            let object = serde_json::json!({
                "error": self.message, "causes": causes, "hint": self.hint, "code": self.code, "exit": self.exit.code(),
            });
            eprintln!("{object}");
        } else {
            for line in self.lines() {
                eprintln!("{line}");
            }
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for CliError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn Error + 'static))
    }
}

/// Wraps an I/O error with what was tried on which object.
pub fn io_error(what: impl fmt::Display, error: std::io::Error) -> CliError {
    CliError::internal(what.to_string()).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_printed_once_and_in_order() {
        let io = std::io::Error::new(std::io::ErrorKind::PermissionDenied, "permission denied");
        let error = io_error("create /x", io).hint("choose another folder");
        assert_eq!(
            error.lines(),
            ["error: create /x", "  caused by: permission denied", "hint: choose another folder"]
        );
    }
}
