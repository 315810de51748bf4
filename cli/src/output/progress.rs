//! The progress bar of `run` and `wait`: on a terminal only, on stderr.

use super::Output;
use super::summary::counts_words;
use crate::limits::PROGRESS_EVERY;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pf_protocol::api::Counts;

/// A bar, or nothing where nobody would see one.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// A bar for a job of `total` tasks.
    #[must_use]
    pub fn new(output: &Output, total: u64) -> Progress {
        if !output.live || output.quiet || output.json || total == 0 {
            return Progress { bar: None };
        }
        let hertz = u8::try_from(1_000 / PROGRESS_EVERY.as_millis()).unwrap_or(5);
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(hertz));
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} left {eta} · {msg}")
        {
            bar.set_style(style);
        }
        Progress { bar: Some(bar) }
    }

    /// Whether a bar is drawn.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        self.bar.is_some()
    }

    /// Where it stands.
    pub fn set(&self, counts: &Counts) {
        if let Some(bar) = &self.bar {
            bar.set_length(counts.total);
            bar.set_position(counts.ok + counts.failed + counts.cancelled);
            bar.set_message(counts_words(counts));
        }
    }

    /// Runs `print` with the bar out of the way.
    pub fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Takes it away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
