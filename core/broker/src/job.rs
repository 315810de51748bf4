//! One job as the records tell it. Changed only by [`crate::state::State::apply`].

use crate::ended::{Ended, Row};
use crate::limits::{ERROR_EXAMPLES_MAX, ERROR_GROUPS_MAX};
use crate::record::{CountAs, FailedAttempt, Failure, Piece};
use pf_protocol::api::{JobState, Times};
use pf_protocol::job::JobSpec;
use pf_protocol::outcome::OutcomeKind;
use pf_protocol::{AttemptId, BlobRef, ContentHash, EndpointId, JobId, JobKey, OwnerId, Ranges};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What failed attempts left behind of a task. Only tasks that had some have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    /// The newest attempt that is known to have ended.
    pub last: AttemptId,
    /// Failures of the task's own.
    pub failures: u32,
    /// Managers lost under it.
    pub losses: u32,
    /// Losses that are not held against it.
    pub innocent: u32,
    /// Node of the newest: index in the table of names.
    pub node: u32,
}

impl History {
    /// All attempts before.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.failures + self.losses + self.innocent
    }
}

/// What tells error groups apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ErrorKey {
    pub kind: OutcomeKind,
    pub line: String,
    pub exit: Option<i32>,
    pub signal: Option<i32>,
}

/// Failures with the same key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Errors {
    pub count: u64,
    /// How many by node: index in the table of names.
    pub nodes: BTreeMap<u32, u64>,
    /// Positions of the first few.
    pub examples: Vec<u32>,
}

/// A payload that is too large for a batch, as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Large {
    pub len: u64,
    /// Its pieces, each of `PIECE_BYTES` but the last.
    pub blobs: Vec<BlobRef>,
}

/// What was asked to end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CancelIntent {
    /// The whole job.
    pub whole: bool,
    /// Positions, where it is not the whole job.
    pub tasks: Ranges,
    /// What runs is killed.
    pub kill: bool,
    /// Why, for people.
    pub reason: String,
}

impl CancelIntent {
    /// Whether the task at `position` is to end.
    #[must_use]
    pub fn covers(&self, position: u32) -> bool {
        self.whole || self.tasks.contains(position)
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    pub key: JobKey,
    pub hash: ContentHash,
    pub owner: OwnerId,
    pub endpoint: EndpointId,
    pub spec: JobSpec,
    /// Tasks so far: positions are 0..total.
    pub total: u32,
    /// Whether it takes more.
    pub open: bool,
    pub submitted_us: u64,
    /// When its last task ended, if it is over.
    pub ended_us: Option<u64>,
    /// Position of the first task of each append, and when it came.
    pub appends: Vec<(u32, u64)>,
    pub pieces: Vec<Piece>,
    pub ended: Ended,
    pub ok: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub cancel: CancelIntent,
    pub history: BTreeMap<u32, History>,
    /// Payloads that its tasks and outcomes name.
    #[serde(default, with = "pairs")]
    pub large: BTreeMap<ContentHash, Large>,
    /// Positions that were handed out ever, of jobs that are not simply run again.
    #[serde(default)]
    pub handed: Ranges,
    /// In a list of pairs on disk, since a map's key must be text there for other readers.
    #[serde(with = "pairs")]
    pub errors: BTreeMap<ErrorKey, Errors>,
    pub times: Times,
}

impl Job {
    /// Whether all its tasks ended and none can come.
    #[must_use]
    pub fn is_over(&self) -> bool {
        !self.open && self.ended.len() == self.total
    }

    /// Tasks that have not ended.
    #[must_use]
    pub fn unfinished(&self) -> u64 {
        u64::from(self.total - self.ended.len())
    }

    /// Where it stands, apart from waiting for other jobs.
    #[must_use]
    pub fn state(&self) -> JobState {
        if !self.is_over() {
            JobState::Active
        } else if self.cancel.whole && self.cancelled > 0 {
            JobState::Cancelled
        } else if self.failed + self.cancelled > 0 {
            JobState::Failed
        } else if self.cancel.whole {
            JobState::Cancelled
        } else {
            JobState::Ok
        }
    }

    /// The piece that holds the item of `position`; None if the tasks have no items.
    #[must_use]
    pub fn piece_of(&self, position: u32) -> Option<Piece> {
        let after = self.pieces.partition_point(|p| p.first <= position);
        self.pieces.get(after.checked_sub(1)?).copied().filter(|p| position - p.first < p.count)
    }

    /// When the task at `position` was accepted, Unix microseconds.
    #[must_use]
    pub fn appended_us(&self, position: u32) -> u64 {
        let after = self.appends.partition_point(|a| a.0 <= position);
        after.checked_sub(1).and_then(|at| self.appends.get(at)).map_or(self.submitted_us, |a| a.1)
    }

    /// How often the task lost its manager.
    #[must_use]
    pub fn losses(&self, position: u32) -> u32 {
        self.history.get(&position).map_or(0, |h| h.losses)
    }

    pub(crate) fn appended(&mut self, count: u32, at_us: u64, pieces: &[Piece]) {
        if count > 0 {
            self.appends.push((self.total, at_us));
        }
        self.pieces.extend_from_slice(pieces);
        self.total += count;
    }

    pub(crate) fn count(&mut self, row: &Row) {
        match row.kind {
            OutcomeKind::Value => self.ok += 1,
            OutcomeKind::Cancelled => self.cancelled += 1,
            _ => self.failed += 1,
        }
    }

    pub(crate) fn group_error(&mut self, row: &Row, failure: &Failure, node: u32) {
        let Failure { line, exit, signal, .. } = failure.clone();
        let mut key = ErrorKey { kind: row.kind, line, exit, signal };
        if self.errors.len() >= ERROR_GROUPS_MAX && !self.errors.contains_key(&key) {
            key = ErrorKey {
                kind: OutcomeKind::Other,
                line: "(other errors)".into(),
                exit: None,
                signal: None,
            };
        }
        let group = self.errors.entry(key).or_default();
        group.count += 1;
        *group.nodes.entry(node).or_default() += 1;
        if group.examples.len() < ERROR_EXAMPLES_MAX {
            group.examples.push(row.index);
        }
    }

    pub(crate) fn attempt_failed(&mut self, failed: &FailedAttempt, node: u32) {
        let history = self.history.entry(failed.index).or_default();
        history.last = history.last.max(failed.attempt);
        history.node = node;
        match failed.count {
            CountAs::Failure => history.failures += 1,
            CountAs::Loss => history.losses += 1,
            CountAs::Innocent => history.innocent += 1,
        }
    }
}

mod pairs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        s.collect_seq(map)
    }

    pub fn deserialize<'de, K, V, D>(d: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(d)?.into_iter().collect())
    }
}
