//! Outcomes on their way to the broker: gathered in a turn, kept until the broker confirms, sent again in a new session.

use pf_protocol::limits::{BATCH_BYTES_MAX, BATCH_TASKS_MAX};
use pf_protocol::outcome::{Outcome, OutcomeBatch};
use pf_protocol::payload::{PayloadRef, is_large};
use pf_protocol::{ContentHash, JobId, ManagerId};
use std::collections::{BTreeMap, VecDeque};

/// What becomes one `Outcomes` message.
#[derive(Debug, Default)]
struct Bundle {
    /// Its number in this session; 0: not sent in it.
    number: u64,
    batches: Vec<OutcomeBatch>,
    tasks: usize,
    bytes: usize,
}

/// What the broker has now.
#[derive(Debug, Default)]
pub(crate) struct Confirmed {
    /// Of each manager, the highest number of its batches.
    pub managers: BTreeMap<ManagerId, u64>,
    /// Values that were only named.
    pub values: Vec<(JobId, ContentHash)>,
}

fn named_values(batch: &OutcomeBatch) -> Vec<(JobId, ContentHash)> {
    let all = batch.with_values().unwrap_or_default();
    let large = all.into_iter().filter(|(outcome, _)| is_large(outcome.value_len));
    large.filter_map(|(outcome, value)| Some((outcome.job, PayloadRef::read(&value)?.hash))).collect()
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bundles: VecDeque<Bundle>,
    /// Number of the last message of this session.
    last_number: u64,
    /// Bundles at the front that were sent in this session.
    sent: usize,
    tasks: u64,
    bytes: u64,
}

impl Outbox {
    /// Takes a batch in.
    pub fn push(&mut self, batch: OutcomeBatch) {
        let tasks = batch.outcomes.len();
        // Texts count as values do: a message must fit into a frame.
        let bytes = batch.outcomes.iter().map(Outcome::cost_bytes).sum::<usize>();
        self.tasks += tasks as u64;
        self.bytes += bytes as u64;
        let open = self.bundles.len() > self.sent;
        let last = self
            .bundles
            .back_mut()
            .filter(|b| open && b.tasks + tasks <= BATCH_TASKS_MAX && b.bytes + bytes <= BATCH_BYTES_MAX);
        match last {
            Some(bundle) => {
                bundle.tasks += tasks;
                bundle.bytes += bytes;
                bundle.batches.push(batch);
            }
            None => self.bundles.push_back(Bundle { number: 0, batches: vec![batch], tasks, bytes }),
        }
    }

    /// The next message to send in this session: number and batches.
    pub fn next(&mut self) -> Option<(u64, Vec<OutcomeBatch>)> {
        let bundle = self.bundles.get_mut(self.sent)?;
        self.last_number += 1;
        bundle.number = self.last_number;
        self.sent += 1;
        Some((bundle.number, bundle.batches.clone()))
    }

    /// Whether something waits to be sent.
    pub fn has_unsent(&self) -> bool {
        self.sent < self.bundles.len()
    }

    /// A new session: everything is to be sent again.
    pub fn restart(&mut self) {
        self.sent = 0;
        self.last_number = 0;
    }

    /// The broker has everything up to `upto`.
    pub fn confirm(&mut self, upto: u64) -> Confirmed {
        let mut confirmed = Confirmed::default();
        while self.sent > 0 && self.bundles.front().is_some_and(|b| b.number <= upto) {
            let Some(bundle) = self.bundles.pop_front() else { break };
            self.sent -= 1;
            self.tasks -= bundle.tasks as u64;
            self.bytes -= bundle.bytes as u64;
            for batch in bundle.batches.iter().filter(|b| b.seq > 0) {
                let highest = confirmed.managers.entry(batch.manager).or_insert(0);
                *highest = batch.seq.max(*highest);
                if batch.outcomes.iter().any(|o| is_large(o.value_len)) {
                    confirmed.values.extend(named_values(batch));
                }
            }
        }
        confirmed
    }

    /// Tasks whose outcomes are not confirmed.
    pub fn tasks(&self) -> impl Iterator<Item = (JobId, u32)> + '_ {
        self.bundles.iter().flat_map(|b| &b.batches).flat_map(|b| &b.outcomes).map(|o| (o.job, o.index))
    }

    pub fn task_count(&self) -> u64 {
        self.tasks
    }

    pub fn byte_count(&self) -> u64 {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bundles.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(seq: u64) -> OutcomeBatch {
        OutcomeBatch { seq, outcomes: vec![Outcome::default()], ..OutcomeBatch::default() }
    }

    #[test]
    fn what_is_not_confirmed_is_sent_again_under_new_numbers() {
        let mut outbox = Outbox::default();
        outbox.push(batch(1));
        outbox.push(batch(2));
        assert_eq!(outbox.next().unwrap().0, 1);
        outbox.push(batch(3));
        assert_eq!(outbox.next().unwrap().0, 2);
        assert!(outbox.next().is_none());
        assert_eq!(outbox.confirm(1).managers[&ManagerId::default()], 2);
        outbox.restart();
        assert!(outbox.confirm(9).managers.is_empty(), "nothing was sent in this session yet");
        let (number, batches) = outbox.next().unwrap();
        assert_eq!((number, batches[0].seq), (1, 3));
        assert_eq!(outbox.confirm(1).managers[&ManagerId::default()], 3);
        assert!(outbox.is_empty() && outbox.task_count() == 0);
    }
}
