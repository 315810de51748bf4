//! Outcomes of relays: judged, recorded in batches, confirmed once synced. The hot path of results.

use crate::broker::{Broker, Turn};
use crate::ended::Row;
use crate::io::{Class, PutError};
use crate::job::Job;
use crate::live::LiveJob;
use crate::policy::{Circumstances, Verdict, first_line, judge};
use crate::record::{AttemptsFailed, EndedPart, FailedAttempt, Failure, TasksEnded};
use crate::relays::Phase;
use crate::stream::{Detail, encode_details};
use bytes::Bytes;
use pf_protocol::limits::{BATCH_TASKS_MAX, ERROR_TEXT_BYTES_MAX, TRACEBACK_BYTES_MAX};
use pf_protocol::message::{Outcomes, Refuse};
use pf_protocol::outcome::{ErrorDetail, Outcome, OutcomeKind, Ran};
use pf_protocol::{AttemptId, BlobRef, EndpointId, Epoch, JobId, Ranges};
use std::collections::{BTreeMap, BTreeSet};

/// An end that the broker itself gives to tasks.
#[derive(Debug, Clone)]
pub(crate) struct OwnEnd {
    pub kind: OutcomeKind,
    pub ran: Ran,
    pub message: String,
    pub hint: String,
}

/// Tasks of one job that ended on one node, being collected.
#[derive(Debug, Default)]
struct Part {
    rows: Vec<Row>,
    failures: Vec<Failure>,
    details: Vec<Detail>,
    values: Vec<Bytes>,
    values_len: usize,
    queued_us: u64,
    transferred_us: u64,
    timed: u64,
}

/// What a message amounts to so far, not yet recorded.
#[derive(Debug, Default)]
struct Collected {
    /// By number of the batch and job.
    parts: BTreeMap<(usize, JobId), (String, Part)>,
    rows: usize,
    again: Vec<FailedAttempt>,
    not_run: BTreeMap<JobId, Ranges>,
    seen: Seen,
}

/// Tasks that were in this message already. Free as long as they come in order, which is nearly always.
#[derive(Debug, Default)]
struct Seen {
    last: Option<(JobId, u32)>,
    all: Option<BTreeSet<(JobId, u32)>>,
}

impl Seen {
    /// Whether the task is new; `before` lists those that were.
    fn is_new(&mut self, job: JobId, index: u32, before: impl FnOnce() -> BTreeSet<(JobId, u32)>) -> bool {
        let task = (job, index);
        if self.all.is_none() && self.last.is_none_or(|last| last < task) {
            self.last = Some(task);
            return true;
        }
        self.all.get_or_insert_with(before).insert(task)
    }
}

impl Collected {
    fn is_new(&mut self, job: JobId, index: u32) -> bool {
        let Collected { parts, again, not_run, seen, .. } = self;
        seen.is_new(job, index, || {
            let ended = parts.iter().flat_map(|((_, job), (_, p))| p.rows.iter().map(|r| (*job, r.index)));
            let again = again.iter().map(|failed| (failed.job, failed.index));
            let not_run = not_run.iter().flat_map(|(job, tasks)| tasks.iter().map(|index| (*job, index)));
            ended.chain(again).chain(not_run).collect()
        })
    }
}

impl Broker {
    pub(crate) fn on_outcomes(
        &mut self,
        conn: u64,
        endpoint: EndpointId,
        message: Outcomes,
        turn: &mut Turn<'_>,
    ) {
        let mut collected = Collected::default();
        for (nth, batch) in message.batches.iter().enumerate() {
            let Some(outcomes) = batch.with_values() else {
                return self.outcomes_refused(conn, "lengths and bytes of its outcomes do not agree", turn);
            };
            for (outcome, value) in outcomes {
                if self.must_be_pulled(endpoint, message.number, &batch.node, outcome, &value) {
                    continue;
                }
                self.collect(endpoint, nth, &batch.node, outcome, value, turn.at_us, &mut collected);
                if collected.rows + collected.again.len() >= BATCH_TASKS_MAX
                    && let Err(why) = self.record(std::mem::take(&mut collected), turn)
                {
                    return self.outcomes_refused(conn, &why, turn);
                }
            }
        }
        if let Err(why) = self.record(collected, turn) {
            return self.outcomes_refused(conn, &why, turn);
        }
        if let Some(link) = self.endpoints.get_mut(&endpoint).and_then(|e| e.link.as_mut()) {
            link.taken_upto = message.number;
        }
        self.pull(conn, endpoint, turn);
    }

    /// Records one outcome, whose value was pulled.
    pub(crate) fn record_one(
        &mut self,
        endpoint: EndpointId,
        node: &str,
        outcome: &Outcome,
        value: Bytes,
        turn: &mut Turn<'_>,
    ) -> Result<(), String> {
        let mut collected = Collected::default();
        self.collect(endpoint, 0, node, outcome, value, turn.at_us, &mut collected);
        self.record(collected, turn)
    }

    /// What cannot be recorded now is sent again in the next session; until then the relay keeps it.
    pub(crate) fn outcomes_refused(&mut self, conn: u64, why: &str, turn: &mut Turn<'_>) {
        let refuse = Refuse { code: "not_ready".into(), message: why.into(), retry: true };
        self.refuse_link(conn, refuse, turn);
    }

    #[expect(clippy::too_many_arguments, reason = "all of them are this one outcome, taken apart")]
    fn collect(
        &mut self,
        endpoint: EndpointId,
        nth: usize,
        node: &str,
        outcome: &Outcome,
        value: Bytes,
        at_us: u64,
        collected: &mut Collected,
    ) {
        let Some(job) = self.state.jobs.get(&outcome.job) else { return };
        let Some(live) = self.jobs.get_mut(&outcome.job) else { return };
        let index = outcome.index;
        if job.endpoint != endpoint || index >= job.total || job.ended.contains(index) {
            return;
        }
        // Until the relay has said what it holds, the newest attempt may be of any epoch.
        let link = self.endpoints.get(&endpoint).and_then(|e| e.link.as_ref());
        let is_up = link.is_some_and(|link| link.phase == Phase::Up);
        let epoch = self.state.endpoints.get(&endpoint).filter(|_| is_up).map_or(Epoch(0), |e| e.epoch);
        let about = Circumstances {
            cancelled: job.cancel.covers(index),
            older: is_older(live, index, outcome.attempt, epoch),
        };
        let history = job.history.get(&index).copied().unwrap_or_default();
        let verdict = judge(&job.spec, history, outcome, about);
        if verdict == Verdict::Stale || !collected.is_new(outcome.job, index) {
            return;
        }
        match verdict {
            Verdict::End(kind) => {
                let times = times(job, live, outcome, at_us);
                collected.rows += 1;
                let key = (nth, outcome.job);
                let (_, part) = collected.parts.entry(key).or_insert_with(|| (node.into(), Part::default()));
                part.add(kind, outcome, value, times);
            }
            Verdict::Again(count) => collected.again.push(FailedAttempt {
                job: outcome.job,
                index,
                attempt: outcome.attempt,
                node: node.into(),
                kind: outcome.kind,
                count,
                line: outcome.error.as_ref().map(|e| first_line(&e.message)).unwrap_or_default(),
            }),
            Verdict::NotRun => collected.not_run.entry(outcome.job).or_default().insert(index),
            Verdict::Stale => {}
        }
    }

    /// Records what was collected.
    fn record(&mut self, collected: Collected, turn: &mut Turn<'_>) -> Result<(), String> {
        let mut parts = Vec::with_capacity(collected.parts.len());
        for ((_, job), (node, part)) in collected.parts {
            parts.push(part.store(job, node, turn).map_err(|e| e.to_string())?);
        }
        if !parts.is_empty() {
            let tasks: Vec<(JobId, Vec<u32>)> =
                parts.iter().map(|p| (p.job, p.rows.iter().map(|r| r.index).collect())).collect();
            self.log(TasksEnded { at_us: turn.at_us, parts }, turn).map_err(|e| e.message)?;
            for (id, tasks) in tasks {
                if let Some(live) = self.jobs.get_mut(&id) {
                    tasks.into_iter().for_each(|index| live.leave(index));
                }
                self.to_check.insert(id);
            }
        }
        if !collected.again.is_empty() {
            let mut again: BTreeMap<JobId, Ranges> = BTreeMap::new();
            for failed in &collected.again {
                again.entry(failed.job).or_default().insert(failed.index);
            }
            let record = AttemptsFailed { at_us: turn.at_us, attempts: collected.again };
            self.log(record, turn).map_err(|e| e.message)?;
            for (id, tasks) in again {
                if let Some(live) = self.jobs.get_mut(&id) {
                    live.leave_all(&tasks);
                }
                self.queue_after_sync(id, tasks, turn);
            }
        }
        for (id, tasks) in collected.not_run {
            self.give_back(id, &tasks, turn);
        }
        Ok(())
    }

    /// Ends tasks by the broker's own word.
    pub(crate) fn end_by_broker(&mut self, id: JobId, tasks: &Ranges, end: &OwnEnd, turn: &mut Turn<'_>) {
        let mut collected = Collected::default();
        let mut part = Part::default();
        let error = ErrorDetail {
            message: end.message.clone(),
            hint: Some(end.hint.clone()),
            ..ErrorDetail::default()
        };
        for index in tasks.iter() {
            let outcome = Outcome {
                job: id,
                index,
                kind: end.kind,
                ran: end.ran,
                error: Some(Box::new(error.clone())),
                ..Outcome::default()
            };
            part.add(end.kind, &outcome, Bytes::new(), None);
        }
        if !part.rows.is_empty() {
            collected.parts.insert((0, id), (String::new(), part));
        }
        // If even this cannot be recorded, the tasks go on waiting, and the next try to load them decides.
        let _ = self.record(collected, turn);
    }
}

/// Whether a newer attempt of the task must exist: one is known to run, or the task was handed out in this epoch.
fn is_older(live: &LiveJob, index: u32, attempt: AttemptId, epoch: Epoch) -> bool {
    let known = live.running.get(&index).is_some_and(|run| attempt < run.attempt);
    let minted = attempt.epoch.0 > 0 && attempt.epoch < epoch;
    known || (minted && live.is_assigned(index) && !live.claimed.contains(index))
}

/// Queued and transferred, microseconds, if known.
fn times(job: &Job, live: &mut LiveJob, outcome: &Outcome, at_us: u64) -> Option<(u64, u64)> {
    let handed_us = live.handed_at(outcome.index)?;
    let queued_us = handed_us.saturating_sub(job.appended_us(outcome.index));
    let away_us = at_us.saturating_sub(handed_us);
    Some((queued_us, away_us.saturating_sub(outcome.held_us.saturating_add(outcome.ran_us))))
}

impl Part {
    fn add(&mut self, kind: OutcomeKind, outcome: &Outcome, value: Bytes, times: Option<(u64, u64)>) {
        let nth = self.rows.len() as u32;
        self.rows.push(Row {
            index: outcome.index,
            held_us: u32::try_from(outcome.held_us).unwrap_or(u32::MAX),
            ran_us: u32::try_from(outcome.ran_us).unwrap_or(u32::MAX),
            value_len: outcome.value_len,
            kind,
            ran: outcome.ran,
        });
        if let Some((queued_us, transferred_us)) = times {
            self.queued_us += queued_us;
            self.transferred_us += transferred_us;
            self.timed += 1;
        }
        self.values_len += value.len();
        if !value.is_empty() {
            self.values.push(value);
        }
        let mut error = outcome.error.as_deref().cloned().map(cut);
        if error.is_none() && !kind.is_ok() {
            error = Some(ErrorDetail { message: kind.name().replace('_', " "), ..ErrorDetail::default() });
        }
        if !kind.is_ok()
            && kind != OutcomeKind::Cancelled
            && let Some(error) = &error
        {
            let line = first_line(&error.message);
            self.failures.push(Failure { nth, line, exit: error.exit, signal: error.signal });
        }
        if error.is_some() || outcome.usage.is_some() {
            let (attempt, usage) = (outcome.attempt, outcome.usage);
            self.details.push(Detail { nth, attempt, error: error.map(Box::new), usage });
        }
    }

    /// Puts values and details, and gives the part of the record.
    fn store(self, job: JobId, node: String, turn: &mut Turn<'_>) -> Result<EndedPart, PutError> {
        let Part { rows, failures, details, values, values_len, queued_us, transferred_us, timed } = self;
        let blob = match (values.as_slice(), details.is_empty()) {
            ([], true) => BlobRef::default(),
            ([value], true) => turn.blobs.put(job, Class::Outcome, value)?,
            (values, _) => {
                let mut bytes = Vec::with_capacity(values_len + details.len() * 64);
                values.iter().for_each(|value| bytes.extend_from_slice(value));
                if !details.is_empty() {
                    encode_details(&details, &mut bytes).map_err(|e| PutError::Busy(e.to_string()))?;
                }
                turn.blobs.put(job, Class::Outcome, &bytes)?
            }
        };
        let values_len = values_len as u32;
        Ok(EndedPart { job, node, rows, blob, values_len, failures, queued_us, transferred_us, timed })
    }
}

/// Texts within their limits: managers keep to them, the broker does not trust that.
fn cut(mut error: ErrorDetail) -> ErrorDetail {
    let short = |text: &mut String, most: usize| {
        if text.len() > most {
            let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
        }
    };
    short(&mut error.message, ERROR_TEXT_BYTES_MAX);
    error.traceback.iter_mut().for_each(|text| short(text, TRACEBACK_BYTES_MAX));
    error.stderr_tail.iter_mut().for_each(|text| short(text, ERROR_TEXT_BYTES_MAX));
    error.hint.iter_mut().for_each(|text| short(text, ERROR_TEXT_BYTES_MAX));
    error
}
