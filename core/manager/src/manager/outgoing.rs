//! Outcomes on their way: gathered, numbered in batches, kept until the broker's confirmation has come back.

use pf_protocol::limits::{
    BATCH_BYTES_MAX, BATCH_TASKS_MAX, MANAGER_OUTCOME_BYTES_MAX, MANAGER_OUTCOMES_MAX,
};
use pf_protocol::outcome::{Outcome, OutcomeBatch};
use pf_protocol::payload::{LARGE, held};
use pf_protocol::{AttemptId, ManagerId, TaskId};
use std::collections::VecDeque;

#[derive(Debug)]
pub(crate) struct Outgoing {
    manager: ManagerId,
    node: String,
    pending: Vec<Outcome>,
    blob: Vec<u8>,
    /// What `pending` costs.
    pending_bytes: usize,
    /// Closed batches that nobody confirmed, by number.
    batches: VecDeque<OutcomeBatch>,
    last_seq: u64,
    /// Number of the last batch sent in this session.
    sent_upto: u64,
    spooled_upto: u64,
    count: usize,
    bytes: usize,
}

impl Outgoing {
    pub fn new(manager: ManagerId, node: String) -> Self {
        Outgoing {
            manager,
            node,
            pending: Vec::new(),
            blob: Vec::new(),
            pending_bytes: 0,
            batches: VecDeque::new(),
            last_seq: 0,
            sent_upto: 0,
            spooled_upto: 0,
            count: 0,
            bytes: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether so much waits for confirmation that nothing new may start.
    pub fn is_full(&self) -> bool {
        self.count >= MANAGER_OUTCOMES_MAX || self.bytes >= MANAGER_OUTCOME_BYTES_MAX
    }

    pub fn push(&mut self, mut outcome: Outcome, value: &[u8], is_large: bool) {
        outcome.value_len = value.len() as u32 | if is_large { LARGE } else { 0 };
        let cost = outcome.cost_bytes();
        self.count += 1;
        self.bytes += cost;
        self.pending_bytes += cost;
        self.pending.push(outcome);
        self.blob.extend_from_slice(value);
        // Texts count as values do: a batch must fit into a frame.
        if self.pending.len() >= BATCH_TASKS_MAX || self.pending_bytes >= BATCH_BYTES_MAX {
            self.close();
        }
    }

    /// Whether something waits to become a batch.
    pub fn has_gathered(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Makes a batch of what has gathered.
    pub fn close(&mut self) {
        if !self.has_gathered() {
            return;
        }
        self.last_seq += 1;
        self.pending_bytes = 0;
        self.batches.push_back(OutcomeBatch {
            manager: self.manager,
            node: self.node.clone(),
            seq: self.last_seq,
            outcomes: std::mem::take(&mut self.pending),
            blob: std::mem::take(&mut self.blob).into(),
        });
    }

    /// The next closed batch that was not sent in this session.
    pub fn next_unsent(&mut self) -> Option<OutcomeBatch> {
        let at = self.batches.partition_point(|b| b.seq <= self.sent_upto);
        let batch = self.batches.get(at)?;
        self.sent_upto = batch.seq;
        Some(batch.clone())
    }

    /// A new session: all is sent again.
    pub fn send_all_again(&mut self) {
        self.sent_upto = 0;
    }

    /// Everything up to this number is on the broker's disk.
    pub fn confirm(&mut self, upto: u64) {
        while self.batches.front().is_some_and(|b| b.seq <= upto) {
            if let Some(batch) = self.batches.pop_front() {
                self.count -= batch.outcomes.len();
                self.bytes -= batch.outcomes.iter().map(Outcome::cost_bytes).sum::<usize>();
            }
        }
    }

    /// Throws one outcome away: the relay knows better.
    pub fn drop_attempt(&mut self, attempt: AttemptId) {
        self.close();
        for batch in &mut self.batches {
            let Some(at) = batch.outcomes.iter().position(|o| o.attempt == attempt) else { continue };
            let begin: usize = batch.outcomes[..at].iter().map(|o| held(o.value_len)).sum();
            let outcome = batch.outcomes.remove(at);
            let mut blob = batch.blob.to_vec();
            blob.drain(begin..begin + held(outcome.value_len));
            batch.blob = blob.into();
            self.count -= 1;
            self.bytes -= outcome.cost_bytes();
        }
    }

    /// Attempts whose outcome waits for confirmation.
    pub fn ended(&self) -> impl Iterator<Item = (TaskId, AttemptId)> + '_ {
        self.batches.iter().flat_map(|b| &b.outcomes).chain(&self.pending).map(|o| (o.task(), o.attempt))
    }

    /// What no spool holds yet, with the number of the last; None when there is nothing.
    pub fn unspooled(&mut self) -> Option<(u64, Vec<OutcomeBatch>)> {
        self.close();
        let upto = self.batches.back()?.seq;
        let batches: Vec<OutcomeBatch> = self
            .batches
            .iter()
            .filter(|b| b.seq > self.spooled_upto && !b.outcomes.is_empty())
            .cloned()
            .collect();
        (!batches.is_empty()).then_some((upto, batches))
    }

    pub fn has_unspooled(&self) -> bool {
        self.has_gathered() || self.batches.back().is_some_and(|b| b.seq > self.spooled_upto)
    }

    pub fn spooled(&mut self, upto: u64) {
        self.spooled_upto = self.spooled_upto.max(upto);
    }

    pub fn check(&self) {
        let outcomes = || self.batches.iter().flat_map(|b| &b.outcomes).chain(&self.pending);
        assert_eq!(outcomes().count(), self.count, "count of unconfirmed outcomes");
        assert_eq!(
            outcomes().map(Outcome::cost_bytes).sum::<usize>(),
            self.bytes,
            "bytes of unconfirmed outcomes"
        );
        assert!(
            self.batches.iter().all(|b| b.with_values().is_some()),
            "values and lengths of a batch agree"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pf_protocol::{Epoch, JobId};

    fn outcome(n: u32) -> Outcome {
        Outcome { job: JobId(1), index: n, attempt: AttemptId { epoch: Epoch(1), n }, ..Outcome::default() }
    }

    #[test]
    fn batches_are_kept_until_confirmed_and_sent_again_in_a_new_session() {
        let mut out = Outgoing::new(ManagerId::default(), "n".into());
        out.push(outcome(1), b"one", false);
        out.push(outcome(2), b"", false);
        out.close();
        out.push(outcome(3), b"three", false);
        out.check();
        assert_eq!(out.next_unsent().unwrap().outcomes.len(), 2);
        assert!(out.next_unsent().is_none(), "what is not closed is not sent");
        out.close();
        assert_eq!(out.next_unsent().unwrap().seq, 2);
        out.send_all_again();
        assert_eq!(out.next_unsent().unwrap().seq, 1);
        out.confirm(1);
        assert_eq!(out.ended().count(), 1);
        assert_eq!(out.next_unsent().unwrap().seq, 2);
        out.confirm(2);
        assert!(out.is_empty());
        out.check();
    }

    #[test]
    fn one_outcome_can_be_dropped_with_its_value() {
        let mut out = Outgoing::new(ManagerId::default(), "n".into());
        for n in 1..=3 {
            out.push(outcome(n), n.to_string().repeat(n as usize).as_bytes(), false);
        }
        out.drop_attempt(outcome(2).attempt);
        out.check();
        let batch = out.next_unsent().unwrap();
        assert_eq!(&batch.blob[..], b"1333");
    }

    #[test]
    fn a_spool_takes_each_batch_once() {
        let mut out = Outgoing::new(ManagerId::default(), "n".into());
        assert!(out.unspooled().is_none());
        out.push(outcome(1), b"", false);
        let (upto, batches) = out.unspooled().unwrap();
        assert_eq!((upto, batches.len()), (1, 1));
        out.spooled(upto);
        assert!(out.unspooled().is_none());
        out.push(outcome(2), b"", false);
        assert_eq!(out.unspooled().unwrap().1.len(), 1);
    }
}
