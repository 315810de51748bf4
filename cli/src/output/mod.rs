//! How answers are printed: stdout is data, stderr is talk. Colours and bars only on a terminal.

pub mod progress;
pub mod summary;
pub mod table;

use crate::args::Global;
use crate::error::{CliError, Result};
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// How this run of `pf` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// JSON in place of tables.
    pub json: bool,
    /// Ids alone, no talk.
    pub quiet: bool,
    /// Colours on stdout.
    pub colour: bool,
    /// Whether stderr is a terminal that can show a bar.
    pub live: bool,
}

impl Output {
    /// From flags, environment and where stdout and stderr go.
    #[must_use]
    pub fn new(global: &Global) -> Output {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        Output {
            json: global.json,
            quiet: global.quiet,
            colour: !plain && std::io::stdout().is_terminal(),
            live: std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb"),
        }
    }

    /// Talk: a line on stderr, unless quiet.
    pub fn say(&self, line: impl AsRef<str>) {
        if !self.quiet {
            // Nobody is left to be told that stderr is closed.
            let _ = writeln!(std::io::stderr(), "{}", line.as_ref());
        }
    }

    /// A line of data on stdout.
    pub fn line(&self, line: impl AsRef<str>) -> Result<()> {
        self.bytes(format!("{}\n", line.as_ref()).as_bytes())
    }

    /// Data on stdout as it is.
    pub fn bytes(&self, bytes: &[u8]) -> Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(stdout_error)
    }

    /// One JSON object on a line.
    pub fn json(&self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(value).map_err(|e| CliError::internal("write JSON").because(e))?;
        self.line(text)
    }

    /// Bytes as they are; with `--json` as `text` of an object, or as `hex` where they are none.
    pub fn content(&self, of: &str, name: &str, bytes: &[u8]) -> Result<()> {
        if !self.json {
            return self.bytes(bytes);
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => self.json(&serde_json::json!({of: name, "text": text})),
            Err(_) => {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                self.json(&serde_json::json!({of: name, "hex": hex}))
            }
        }
    }

    /// One answer: the value as JSON, the ids alone, or the text for people.
    pub fn answer(
        &self,
        value: &impl Serialize,
        ids: &[String],
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        if self.json {
            self.json(value)
        } else if self.quiet {
            ids.iter().try_for_each(|id| self.line(id))
        } else {
            let text = text();
            if text.is_empty() { Ok(()) } else { self.line(text) }
        }
    }
}

/// A reader that went away (`| head`) ends `pf` quietly, as it ends other tools.
fn stdout_error(error: std::io::Error) -> CliError {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(i32::from(crate::exit::Exit::Ok.code()));
    }
    CliError::internal("write to standard output").because(error)
}
