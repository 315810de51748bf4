//! What schedulers say, made fit for people. Used by every provider.

use crate::Output;
use crate::limits::WORDS_BYTES_MAX;

/// The scheduler's complaint: what it said on standard error, else on standard output, else its exit code.
pub(crate) fn words(output: &Output) -> String {
    let text = if output.stderr.trim().is_empty() { &output.stdout } else { &output.stderr };
    let text = text.trim();
    match (text.is_empty(), output.exit) {
        (true, Some(code)) => format!("exit code {code}, no message"),
        (true, None) => "killed, no message".into(),
        (false, _) => cut(text).to_string(),
    }
}

/// At most [`WORDS_BYTES_MAX`] of it.
pub(crate) fn cut(text: &str) -> &str {
    let mut end = text.len().min(WORDS_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
