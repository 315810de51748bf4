//! What a machine's own scheduler tells of its queues and nodes, by commands that change nothing. `pf site check` holds a profile
//! against it, `pf site new` writes a profile from it.
//!
//! Pure: [`questions`] gives commands, [`read`] takes what they said. Readers are total and bounded: what is not understood is left out.

mod cobalt;
mod lsf;
mod pbs;
mod render;
mod slurm;

pub use render::{Machine, render};

use crate::limits::{LINES_MAX, WORDS_CHARS_MAX};
use crate::profile::{Node, Queue};

/// What a command said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// Exit code; None if it could not be run, was ended by a signal, or took too long.
    pub exit: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error, or why it could not be run.
    pub stderr: String,
}

/// What a scheduler tells of its machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    /// The version, in the scheduler's words.
    pub version: String,
    /// The provider's dialect that fits, where there are several.
    pub dialect: Option<&'static str>,
    /// The queue of jobs that name none.
    pub default_queue: Option<String>,
    /// Queues that take jobs.
    pub queues: Vec<Queue>,
    /// Queues that are closed or stopped.
    pub closed: Vec<String>,
    /// Kinds of nodes.
    pub nodes: Vec<Node>,
}

/// Why there is no survey.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SurveyError {
    /// A command failed.
    #[error("{argv} failed: {words}")]
    Failed {
        /// What was run.
        argv: String,
        /// Its words.
        words: String,
    },
    /// Its answer has nothing that is understood.
    #[error("the answer of {argv} is not understood")]
    NotUnderstood {
        /// What was run.
        argv: String,
    },
}

/// Schedulers that can be asked: the names of their providers.
pub const SCHEDULERS: [&str; 4] = ["slurm", "pbs", "lsf", "cobalt"];

/// The commands to run, in order; none for a scheduler that is not known.
#[must_use]
pub fn questions(scheduler: &str) -> Vec<Vec<String>> {
    let all: &[&[&str]] = match scheduler {
        "slurm" => slurm::QUESTIONS,
        "pbs" => pbs::QUESTIONS,
        "lsf" => lsf::QUESTIONS,
        "cobalt" => cobalt::QUESTIONS,
        _ => &[],
    };
    all.iter().map(|argv| argv.iter().map(|word| (*word).to_owned()).collect()).collect()
}

/// What the answers to [`questions`] tell.
///
/// # Errors
/// When the command that lists the queues failed, or its answer is not understood. The others may fail: they add what they can.
pub fn read(scheduler: &str, answers: &[Answer]) -> Result<Survey, SurveyError> {
    let none = Answer::default();
    let answer = |number: usize| answers.get(number).unwrap_or(&none);
    let mut survey = Survey::default();
    let listed = match scheduler {
        "slurm" => slurm::read(&mut survey, answer),
        "pbs" => pbs::read(&mut survey, answer),
        "lsf" => lsf::read(&mut survey, answer),
        "cobalt" => cobalt::read(&mut survey, answer),
        _ => 0,
    };
    if !survey.queues.is_empty() || !survey.closed.is_empty() {
        return Ok(survey);
    }
    let argv = questions(scheduler).get(listed).map_or(scheduler.to_owned(), |argv| argv.join(" "));
    let said = answer(listed);
    if said.exit == Some(0) && !said.stdout.trim().is_empty() {
        return Err(SurveyError::NotUnderstood { argv });
    }
    let words = [&said.stderr, &said.stdout].into_iter().find(|w| !w.trim().is_empty());
    let words =
        words.map_or("it said nothing".to_owned(), |w| w.trim().chars().take(WORDS_CHARS_MAX).collect());
    Err(SurveyError::Failed { argv, words })
}

/// Lines of an answer, bounded.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().take(LINES_MAX)
}

/// `H:MM:SS`, `MM:SS`, `D-HH:MM:SS` and `D-HH`, as minutes, rounded down to what a job may surely ask for. `[[HH:]MM:]SS` is
/// PBS's reading, which agrees for three parts; two parts are minutes and seconds in both.
fn clock_minutes(text: &str) -> Option<u32> {
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (days.parse::<u64>().ok()?, rest),
        None => (0, text),
    };
    let parts: Vec<u64> = rest.split(':').map(|p| p.parse().ok()).collect::<Option<_>>()?;
    let seconds = match (parts.as_slice(), text.contains('-')) {
        ([h, m, s], _) => h.checked_mul(3600)?.checked_add(m.checked_mul(60)?)?.checked_add(*s)?,
        ([h, m], true) => h.checked_mul(3600)?.checked_add(m.checked_mul(60)?)?,
        ([h], true) => h.checked_mul(3600)?,
        ([m, s], false) => m.checked_mul(60)?.checked_add(*s)?,
        ([s], false) => *s,
        _ => return None,
    };
    u32::try_from(days.checked_mul(86_400)?.checked_add(seconds)? / 60).ok().filter(|minutes| *minutes > 0)
}

/// Adds so many nodes of a kind; kinds that are alike are one.
fn add_nodes(kinds: &mut Vec<Node>, node: Node, count: u32) {
    match kinds.iter_mut().find(|k| Node { count: None, ..(*k).clone() } == node) {
        Some(kind) => kind.count = Some(kind.count.unwrap_or(0).saturating_add(count)),
        None => kinds.push(Node { count: Some(count), ..node }),
    }
}

/// Names the kinds by what they have: `128c`, `64c4g`; alike ones by memory as well.
fn name_nodes(kinds: &mut [Node]) {
    for kind in kinds.iter_mut() {
        let gpus = kind.gpus.filter(|g| *g > 0).map_or(String::new(), |g| format!("{g}g"));
        kind.name = format!("{}c{gpus}", kind.cores.unwrap_or(0));
    }
    let names: Vec<String> = kinds.iter().map(|k| k.name.clone()).collect();
    for kind in kinds.iter_mut().filter(|k| names.iter().filter(|n| **n == k.name).count() > 1) {
        kind.name = format!("{}-{}gib", kind.name, kind.memory_gib.unwrap_or(0));
    }
}

#[cfg(test)]
mod tests;
