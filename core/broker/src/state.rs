//! All that the log says, and the one function by which a record changes it: live and in replay alike. No clock, no links.

use crate::ended::{Chunk, Row};
use crate::job::{CancelIntent, Job, Large};
use crate::limits::{FENCED_MAX, NODES_MAX};
use crate::record::{
    AttemptsFailed, Cancelled, EndedPart, EndpointPut, EpochGranted, FunctionPut, JobSubmitted, Record,
    RelayEnded, TasksAppended,
};
use pf_protocol::job::{Function, FunctionKind};
use pf_protocol::outcome::{OutcomeKind, Ran};
use pf_protocol::{BlobRef, ContentHash, EndpointId, Epoch, FunctionId, JobId, JobKey, OwnerId, Ranges};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A registered function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionState {
    pub kind: FunctionKind,
    pub name: String,
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    pub at_us: u64,
    /// Who registered it.
    pub owners: BTreeSet<OwnerId>,
}

impl FunctionState {
    /// As it travels.
    #[must_use]
    pub fn function(&self) -> Function {
        Function { kind: self.kind, bytes: self.bytes.clone(), name: self.name.clone() }
    }
}

/// An endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EndpointState {
    pub name: String,
    pub owner: OwnerId,
    /// Public key of the relay that may serve it.
    pub relay_key: Option<ContentHash>,
    /// Epoch granted last; 0: none yet, so nothing of it was ever handed out.
    pub epoch: Epoch,
    /// To which relay process.
    pub incarnation: u64,
    /// The relay ended for good since.
    pub ended: bool,
    /// Relay processes that were replaced, oldest first.
    pub fenced: Vec<u64>,
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TokenState {
    pub hash: ContentHash,
    pub at_us: u64,
}

/// A chunk of ended tasks in the order of all outcomes of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupEntry {
    pub first_seq: u64,
    pub job: JobId,
    pub chunk: u32,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct State {
    pub jobs: BTreeMap<JobId, Job>,
    pub functions: BTreeMap<FunctionId, FunctionState>,
    pub endpoints: BTreeMap<EndpointId, EndpointState>,
    pub tokens: BTreeMap<(OwnerId, String), TokenState>,
    /// Names of nodes, by number; 0 is "none".
    pub nodes: Vec<String>,
    pub last_job: u64,
    pub last_endpoint: u64,
    /// Outcomes recorded so far, forgotten ones too.
    pub seq: u64,
    /// Made anew from the above after a snapshot.
    #[serde(skip)]
    pub keys: BTreeMap<(OwnerId, JobKey), JobId>,
    #[serde(skip)]
    pub groups: BTreeMap<(OwnerId, u64), Vec<GroupEntry>>,
    #[serde(skip)]
    pub node_numbers: BTreeMap<String, u32>,
}

/// Why a record cannot be applied: the log is not of this broker, or damaged in a way that checksums do not see.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{record} record of {object} contradicts what came before: {why}")]
pub struct ApplyError {
    record: &'static str,
    object: String,
    why: &'static str,
}

impl State {
    /// What is not stored in a snapshot.
    pub fn rebuild_indexes(&mut self) {
        self.keys = self.jobs.values().map(|job| ((job.owner, job.key), job.id)).collect();
        self.node_numbers =
            (0..).zip(&self.nodes).skip(1).map(|(number, name)| (name.clone(), number)).collect();
        self.groups.clear();
        for job in self.jobs.values().filter(|job| job.ended.len() > 0) {
            let group = self.groups.entry((job.owner, job.spec.group)).or_default();
            let entries = (0..).zip(job.ended.chunks());
            group.extend(entries.map(|(chunk, c)| GroupEntry { first_seq: c.first_seq, job: job.id, chunk }));
        }
        self.groups.values_mut().for_each(|group| group.sort_by_key(|entry| entry.first_seq));
    }

    /// The name of a node.
    #[must_use]
    pub fn node_name(&self, number: u32) -> &str {
        self.nodes.get(number as usize).map_or("", String::as_str)
    }

    /// The endpoint of this name.
    #[must_use]
    pub fn endpoint_named(&self, name: &str) -> Option<(EndpointId, &EndpointState)> {
        self.endpoints.iter().find(|(_, e)| e.name == name).map(|(id, e)| (*id, e))
    }

    fn node_number(&mut self, name: &str) -> u32 {
        if self.nodes.is_empty() {
            self.nodes.push(String::new());
        }
        if name.is_empty() {
            return 0;
        }
        if let Some(number) = self.node_numbers.get(name) {
            return *number;
        }
        if self.nodes.len() >= NODES_MAX {
            return 0;
        }
        let number = self.nodes.len() as u32;
        self.nodes.push(name.into());
        self.node_numbers.insert(name.into(), number);
        number
    }

    /// Changes the state by one record.
    ///
    /// # Errors
    /// When the record contradicts the state; the state is then as before.
    pub fn apply(&mut self, record: &Record) -> Result<(), ApplyError> {
        let name = record.name();
        let wrong = |object: String, why: &'static str| ApplyError { record: name, object, why };
        match record {
            Record::JobSubmitted(body) => {
                self.submitted(body).map_err(|why| wrong(body.job.to_string(), why))
            }
            Record::TasksAppended(body) => {
                self.appended(body).map_err(|why| wrong(body.job.to_string(), why))
            }
            Record::JobClosed(body) => {
                let job = self.jobs.get_mut(&body.job).ok_or_else(|| wrong(body.job.to_string(), NO_JOB))?;
                job.open = false;
                end_if_over(job, body.at_us);
                Ok(())
            }
            Record::TasksEnded(body) => {
                for part in &body.parts {
                    self.check_part(part).map_err(|why| wrong(part.job.to_string(), why))?;
                }
                body.parts.iter().for_each(|part| self.ended(part, body.at_us));
                Ok(())
            }
            Record::AttemptsFailed(body) => {
                self.attempts_failed(body);
                Ok(())
            }
            Record::Cancelled(body) => self.cancelled(body).map_err(|why| wrong(body.job.to_string(), why)),
            Record::JobForgotten(body) => {
                self.forgotten(body.job).map_err(|why| wrong(body.job.to_string(), why))
            }
            Record::FunctionPut(body) => {
                self.function_put(body);
                Ok(())
            }
            Record::EndpointPut(body) => {
                self.endpoint_put(body);
                Ok(())
            }
            Record::EndpointRemoved(body) => {
                let gone = self.endpoints.remove(&body.endpoint);
                gone.map(drop).ok_or_else(|| wrong(body.endpoint.to_string(), NO_ENDPOINT))
            }
            Record::EpochGranted(body) => {
                self.epoch_granted(body).map_err(|why| wrong(body.endpoint.to_string(), why))
            }
            Record::RelayEnded(body) => {
                self.relay_ended(body).map_err(|why| wrong(body.endpoint.to_string(), why))
            }
            Record::TokenAdded(body) => {
                let token = TokenState { hash: body.hash, at_us: body.at_us };
                self.tokens.insert((body.owner, body.name.clone()), token);
                Ok(())
            }
            Record::TasksHanded(body) => {
                let job = self.jobs.get_mut(&body.job).ok_or_else(|| wrong(body.job.to_string(), NO_JOB))?;
                job.handed.union_with(&body.tasks);
                Ok(())
            }
            Record::PayloadPut(body) => {
                let job = self.jobs.get_mut(&body.job).ok_or_else(|| wrong(body.job.to_string(), NO_JOB))?;
                job.large.insert(body.hash, Large { len: body.len, blobs: body.blobs.clone() });
                Ok(())
            }
            Record::TokenRevoked(body) => {
                self.tokens.remove(&(body.owner, body.name.clone()));
                Ok(())
            }
        }
    }

    fn submitted(&mut self, body: &JobSubmitted) -> Result<(), &'static str> {
        if self.jobs.contains_key(&body.job) {
            return Err("there is such a job already");
        }
        let mut job = Job {
            id: body.job,
            key: body.key,
            hash: body.hash,
            owner: body.owner,
            endpoint: body.endpoint,
            spec: body.spec.clone(),
            total: 0,
            open: body.open,
            submitted_us: body.at_us,
            ended_us: None,
            appends: Vec::new(),
            pieces: Vec::new(),
            ended: crate::ended::Ended::default(),
            ok: 0,
            failed: 0,
            cancelled: 0,
            cancel: CancelIntent::default(),
            history: BTreeMap::new(),
            large: BTreeMap::new(),
            handed: Ranges::new(),
            errors: BTreeMap::new(),
            times: pf_protocol::api::Times::default(),
        };
        job.appended(body.count, body.at_us, &body.pieces);
        end_if_over(&mut job, body.at_us);
        self.last_job = self.last_job.max(body.job.0);
        self.keys.insert((body.owner, body.key), body.job);
        self.jobs.insert(body.job, job);
        Ok(())
    }

    fn appended(&mut self, body: &TasksAppended) -> Result<(), &'static str> {
        let job = self.jobs.get_mut(&body.job).ok_or(NO_JOB)?;
        if job.total != body.first || job.total.checked_add(body.count).is_none() {
            return Err("its tasks do not begin where the job ends");
        }
        job.appended(body.count, body.at_us, &body.pieces);
        Ok(())
    }

    fn check_part(&self, part: &EndedPart) -> Result<(), &'static str> {
        let job = self.jobs.get(&part.job).ok_or(NO_JOB)?;
        let known = |row: &Row| row.index < job.total && !job.ended.contains(row.index);
        if part.rows.iter().all(known) { Ok(()) } else { Err("a task has ended before, or is not there") }
    }

    fn ended(&mut self, part: &EndedPart, at_us: u64) {
        let node = self.node_number(&part.node);
        let Some(job) = self.jobs.get_mut(&part.job) else { return };
        let chunk = Chunk {
            first_row: 0,
            node,
            first_seq: self.seq + 1,
            blob: part.blob,
            values_len: part.values_len,
        };
        for row in &part.rows {
            job.count(row);
            job.times.held_us += u64::from(row.held_us);
            job.times.ran_us += u64::from(row.ran_us);
        }
        for failure in &part.failures {
            if let Some(row) = part.rows.get(failure.nth as usize) {
                job.group_error(row, failure, node);
            }
        }
        job.times.queued_us += part.queued_us;
        job.times.transferred_us += part.transferred_us;
        job.times.tasks += part.timed;
        job.ended.push(chunk, &part.rows);
        let entry =
            GroupEntry { first_seq: self.seq + 1, job: job.id, chunk: job.ended.chunks().len() as u32 - 1 };
        self.groups.entry((job.owner, job.spec.group)).or_default().push(entry);
        self.seq += part.rows.len() as u64;
        end_if_over(job, at_us);
    }

    fn attempts_failed(&mut self, body: &AttemptsFailed) {
        for failed in &body.attempts {
            let node = self.node_number(&failed.node);
            if let Some(job) = self.jobs.get_mut(&failed.job) {
                job.attempt_failed(failed, node);
            }
        }
    }

    fn cancelled(&mut self, body: &Cancelled) -> Result<(), &'static str> {
        let job = self.jobs.get_mut(&body.job).ok_or(NO_JOB)?;
        if body.ended.iter().any(|index| index >= job.total || job.ended.contains(index)) {
            return Err("a cancelled task has ended before, or is not there");
        }
        if body.whole {
            job.open = false;
        }
        if body.whole || !body.asked.is_empty() {
            job.cancel.whole |= body.whole;
            job.cancel.tasks.union_with(&body.asked);
            job.cancel.kill |= body.kill;
        }
        if job.cancel.reason.is_empty() {
            job.cancel.reason.clone_from(&body.reason);
        }
        let ran = |index| if body.may_run.contains(index) { Ran::Unknown } else { Ran::No };
        let cancelled =
            |index| Row { index, kind: OutcomeKind::Cancelled, ran: ran(index), ..Row::default() };
        let rows: Vec<Row> = body.ended.iter().map(cancelled).collect();
        if rows.is_empty() {
            end_if_over(job, body.at_us);
        } else {
            let part = EndedPart { job: body.job, rows, blob: BlobRef::default(), ..EndedPart::default() };
            self.ended(&part, body.at_us);
        }
        Ok(())
    }

    fn forgotten(&mut self, id: JobId) -> Result<(), &'static str> {
        let job = self.jobs.remove(&id).ok_or(NO_JOB)?;
        self.keys.remove(&(job.owner, job.key));
        if let Some(group) = self.groups.get_mut(&(job.owner, job.spec.group)) {
            group.retain(|entry| entry.job != id);
            if group.is_empty() {
                self.groups.remove(&(job.owner, job.spec.group));
            }
        }
        Ok(())
    }

    fn function_put(&mut self, body: &FunctionPut) {
        let entry = self.functions.entry(body.function).or_insert_with(|| FunctionState {
            kind: body.kind,
            name: body.name.clone(),
            bytes: body.bytes.clone(),
            at_us: body.at_us,
            owners: BTreeSet::new(),
        });
        entry.owners.insert(body.owner);
    }

    fn endpoint_put(&mut self, body: &EndpointPut) {
        self.last_endpoint = self.last_endpoint.max(body.endpoint.0);
        let endpoint = self.endpoints.entry(body.endpoint).or_default();
        endpoint.name.clone_from(&body.name);
        endpoint.owner = body.owner;
        endpoint.relay_key = body.relay_key;
    }

    fn epoch_granted(&mut self, body: &EpochGranted) -> Result<(), &'static str> {
        let endpoint = self.endpoints.get_mut(&body.endpoint).ok_or(NO_ENDPOINT)?;
        if body.epoch <= endpoint.epoch {
            return Err("the epoch does not grow");
        }
        if endpoint.epoch.0 > 0 {
            endpoint.fenced.push(endpoint.incarnation);
            let over = endpoint.fenced.len().saturating_sub(FENCED_MAX);
            endpoint.fenced.drain(..over);
        }
        endpoint.epoch = body.epoch;
        endpoint.incarnation = body.incarnation;
        endpoint.ended = false;
        Ok(())
    }

    fn relay_ended(&mut self, body: &RelayEnded) -> Result<(), &'static str> {
        let endpoint = self.endpoints.get_mut(&body.endpoint).ok_or(NO_ENDPOINT)?;
        endpoint.ended |= endpoint.epoch == body.epoch;
        Ok(())
    }

    /// Tasks of `job` that may be at its endpoint as far as the log can tell: after a restart, before the relay has said what it holds.
    #[must_use]
    pub fn in_doubt(&self, job: &Job) -> bool {
        self.endpoints.get(&job.endpoint).is_some_and(|e| e.epoch.0 > 0 && !e.ended)
    }

    /// Positions of `job` that have not ended.
    #[must_use]
    pub fn missing(&self, job: JobId) -> Ranges {
        self.jobs.get(&job).map(|j| j.ended.missing(j.total)).unwrap_or_default()
    }
}

const NO_JOB: &str = "there is no such job";
const NO_ENDPOINT: &str = "there is no such endpoint";

fn end_if_over(job: &mut Job, at_us: u64) {
    if job.is_over() && job.ended_us.is_none() {
        job.ended_us = Some(at_us);
    }
}
