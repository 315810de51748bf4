//! Streams of outcomes to clients: what a batch carries, and how its payloads are read. The core gives places, the shell reads the bytes on
//! a thread of its own.

use crate::requests::TaskView;
use bytes::Bytes;
use pf_protocol::outcome::{ErrorDetail, OutcomeKind, Ran, Usage};
use pf_protocol::payload::held;
use pf_protocol::{AttemptId, BlobRef, JobId};
use serde::{Deserialize, Serialize};

/// Outcomes in the order in which they were recorded.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StreamBatch {
    /// Number of the last outcome of this batch: the cursor after it.
    pub seq: u64,
    /// The outcomes.
    pub parts: Vec<StreamPart>,
    /// Nothing more will come on this subscription, which is thereby over.
    pub end: bool,
}

/// Outcomes of one job that were recorded together.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamPart {
    /// The job.
    pub job: JobId,
    /// Node on which they ran; empty if on none.
    pub node: String,
    /// Number of the first outcome.
    pub first_seq: u64,
    /// The outcomes.
    pub rows: Vec<StreamRow>,
    /// Where all the values of these rows lie, one after another; `len` 0: all are empty.
    pub values: BlobRef,
    /// Where the details lie ([`decode_details`]); None if there are none.
    pub details: Option<BlobRef>,
    /// Number of the first row among the details.
    pub first_detail: u32,
}

/// One outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRow {
    /// Position.
    pub index: u32,
    /// Label.
    pub label: u64,
    /// How it ended.
    pub kind: OutcomeKind,
    /// Whether it possibly ran.
    pub ran: Ran,
    /// Held at the manager, microseconds, saturated.
    pub held_us: u32,
    /// Ran, microseconds, saturated.
    pub ran_us: u32,
    /// Length of its value, marked if it is only named.
    pub value_len: u32,
    /// Attempts that failed or were lost before.
    pub attempts_before: u32,
}

/// What only few outcomes have, or nobody needs at once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Detail {
    /// Which row of its chunk, from 0.
    pub nth: u32,
    /// The attempt that ended it.
    pub attempt: AttemptId,
    /// What failed.
    pub error: Option<Box<ErrorDetail>>,
    /// What it used.
    pub usage: Option<Usage>,
}

/// Writes the details of a chunk.
///
/// # Errors
/// Only when memory ends.
pub(crate) fn encode_details(details: &[Detail], out: &mut Vec<u8>) -> Result<(), rmp_serde::encode::Error> {
    rmp_serde::encode::write_named(out, details)
}

/// Reads the details of a chunk, in order of `nth`.
///
/// # Errors
/// When the bytes are not what this or an older version wrote.
pub fn decode_details(bytes: &[u8]) -> Result<Vec<Detail>, rmp_serde::decode::Error> {
    rmp_serde::from_slice(bytes)
}

impl StreamPart {
    /// Each row with its value, cut from the bytes at [`StreamPart::values`]. None when they do not agree.
    #[must_use]
    pub fn rows_with_values(&self, values: &Bytes) -> Option<Vec<(StreamRow, Bytes)>> {
        let mut at = 0usize;
        let mut out = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            let end = at.checked_add(held(row.value_len)).filter(|end| *end <= values.len())?;
            out.push((*row, values.slice(at..end)));
            at = end;
        }
        Some(out)
    }
}

impl TaskView {
    /// Adds what the details at [`TaskView::detail`] say.
    pub fn complete(&mut self, details: &[Detail]) {
        let Some((_, nth)) = self.detail else { return };
        let Some(detail) = details.iter().find(|d| d.nth == nth) else { return };
        self.row.max_rss_kib = detail.usage.map(|u| u.max_rss_kib);
        if let Some(error) = &detail.error {
            self.row.exit = error.exit;
            self.row.signal = error.signal;
            self.row.message = Some(error.message.clone());
            self.row.traceback.clone_from(&error.traceback);
            self.row.stderr_tail.clone_from(&error.stderr_tail);
        }
    }
}
