//! Nodes that fail everything they get: found by comparison with the other nodes, given no tasks for a while, excluded from the next
//! blocks. The rules, with their numbers, are in `docs/scaling.md`.

use crate::blocks::Block;
use crate::io::Quarantine;
use crate::limits::{
    CHANCE_LN, DEATHS_MAX, QUARANTINE_MS, QUICK_US, SETTLED_US, STREAK_MIN, STREAK_TASKS_MAX, WATCH_US,
};
use crate::relay::Relay;
use pf_protocol::outcome::{Outcome, OutcomeKind};
use pf_protocol::{BlockId, JobId, Micros};
use std::collections::{BTreeMap, BTreeSet};

/// Tasks of one job that failed quickly on one node, since a task last succeeded there.
#[derive(Debug, Default)]
struct Streak {
    tasks: BTreeSet<u32>,
    /// Failures of the job on this node, each attempt counted.
    failures: u64,
    /// What the job had counted when the streak began.
    ok_before: u64,
    bad_before: u64,
}

/// What speaks against a node.
#[derive(Debug, Default)]
pub(crate) struct NodeBook {
    streaks: BTreeMap<JobId, Streak>,
    /// Managers in a row that died soon after they had connected.
    deaths: u32,
    /// It gets no task until then, while others show whether they do better.
    watched_until: Option<Micros>,
}

impl Relay {
    /// Looks at the ends of attempts of one job on one node.
    pub(crate) fn see_ends(&mut self, id: JobId, node: &str, run: &[Outcome]) {
        let bad = |kind: OutcomeKind| {
            matches!(
                kind,
                OutcomeKind::Exception
                    | OutcomeKind::Exit
                    | OutcomeKind::Signal
                    | OutcomeKind::OutOfMemory
                    | OutcomeKind::WorkerLost
                    | OutcomeKind::Refused
            )
        };
        let ok = run.iter().filter(|o| o.kind == OutcomeKind::Value).count() as u64;
        let failed = run.iter().filter(|o| bad(o.kind)).count() as u64;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let (ok_before, bad_before) = (job.ok, job.bad);
        job.ok += ok;
        job.bad += failed;
        if ok > 0 {
            if self.nodes.get_mut(node).is_some_and(|book| !std::mem::take(&mut book.streaks).is_empty()) {
                self.unwatch(node);
            }
            return;
        }
        let quick = || run.iter().filter(|o| bad(o.kind) && o.ran_us < QUICK_US);
        if quick().next().is_none() {
            return;
        }
        let book = self.nodes.entry(node.into()).or_default();
        let fresh = || Streak { ok_before, bad_before, ..Streak::default() };
        let streak = book.streaks.entry(id).or_insert_with(fresh);
        streak.failures += failed;
        for outcome in quick() {
            if streak.tasks.len() < STREAK_TASKS_MAX {
                streak.tasks.insert(outcome.index);
            }
        }
        if streak.tasks.len() >= STREAK_MIN {
            self.suspect_node(node, id);
        }
    }

    /// Compares a node with the others: quarantine, a look at it, or nothing.
    fn suspect_node(&mut self, node: &str, id: JobId) {
        let Some(streak) = self.nodes.get(node).and_then(|b| b.streaks.get(&id)) else { return };
        let Some(job) = self.jobs.get(&id) else { return };
        let here = streak.tasks.len();
        let elsewhere_bad = (job.bad - streak.bad_before).saturating_sub(streak.failures);
        let (mut lasting, mut young) = (0, false);
        for flight in self.flights.values().filter(|f| f.job == id) {
            let other = self.managers.get(&flight.manager).is_some_and(|m| m.node != node && m.usable());
            let lasts = self.now >= flight.since + QUICK_US;
            lasting += if other && lasts { u64::from(flight.live()) } else { 0 };
            young |= other && !lasts;
        }
        let elsewhere_ok = job.ok - streak.ok_before + lasting;
        // How likely is so long a row by chance, by how often the job's tasks fail elsewhere?
        let all = (elsewhere_ok + elsewhere_bad) as f64;
        let share = (elsewhere_bad as f64 + 1.0) / (all + 2.0);
        if elsewhere_ok > 0 && here as f64 * share.ln() <= CHANCE_LN {
            let reason = format!(
                "{here} tasks of {id} in a row failed within {} s on it, while {elsewhere_ok} ran elsewhere and {elsewhere_bad} failed there",
                QUICK_US / 1_000_000
            );
            self.quarantine(node, reason);
        } else if elsewhere_ok == 0 && elsewhere_bad == 0 && young {
            let now = self.now;
            let Some(book) = self.nodes.get_mut(node).filter(|b| b.watched_until.is_none()) else { return };
            book.watched_until = Some(now + WATCH_US);
            self.decide(format!(
                "node {node} gets no task for {} s: {here} tasks of {id} failed on it at once, and others have not ended yet",
                WATCH_US / 1_000_000
            ));
            self.shun(node);
        }
    }

    /// Looks again at nodes that are watched, and lets those in whose time is over.
    pub(crate) fn look_at_nodes(&mut self) {
        let watched: Vec<(String, Micros, Vec<JobId>)> = self
            .nodes
            .iter()
            .filter_map(|(n, b)| Some((n.clone(), b.watched_until?, b.streaks.keys().copied().collect())))
            .collect();
        for (node, until, jobs) in watched {
            jobs.into_iter().for_each(|job| self.suspect_node(&node, job));
            let others_fail = self.nodes.get(&node).is_some_and(|b| {
                b.streaks
                    .iter()
                    .any(|(id, s)| self.jobs.get(id).is_none_or(|j| j.bad - s.bad_before > s.failures))
            });
            if self.now >= until || others_fail {
                if let Some(book) = self.nodes.get_mut(&node) {
                    book.streaks.clear();
                }
                self.unwatch(&node);
            }
        }
        let now_ms = self.unix_ms();
        let over = self.blocks.roster.quarantine.iter().filter(|(_, q)| now_ms >= q.until_ms);
        for node in over.map(|(n, _)| n.clone()).collect::<Vec<_>>() {
            self.decide(format!("node {node} is tried again"));
            self.release_node(&node);
        }
        self.try_what_is_needed();
    }

    /// A manager was lost, or ended: whether it lived long enough.
    pub(crate) fn see_death(&mut self, node: &str, lived_us: u64) {
        if lived_us >= SETTLED_US {
            if let Some(book) = self.nodes.get_mut(node) {
                book.deaths = 0;
            }
            return;
        }
        // Without another node to compare with, a task that kills its manager looks the same, and nothing would be left to run on.
        let others_live = self.managers.values().any(|m| m.node != node && m.usable());
        let book = self.nodes.entry(node.into()).or_default();
        book.deaths += 1;
        if book.deaths >= DEATHS_MAX && others_live {
            let seconds = SETTLED_US / 1_000_000;
            let reason = format!(
                "{} managers in a row died on it within {seconds} s, while others live on other nodes",
                book.deaths
            );
            self.quarantine(node, reason);
        }
    }

    fn quarantine(&mut self, node: &str, reason: String) {
        self.decide(format!("quarantine for node {node}: {reason}"));
        let until_ms = self.unix_ms() + QUARANTINE_MS;
        let quarantine = Quarantine { reason, until_ms, needed_by: BTreeSet::new() };
        self.blocks.roster.quarantine.insert(node.into(), quarantine);
        self.nodes.remove(node);
        self.roster_changed();
        self.shun(node);
    }

    fn unwatch(&mut self, node: &str) {
        if self.nodes.get_mut(node).is_some_and(|b| b.watched_until.take().is_some()) {
            self.decide(format!("node {node} gets tasks again"));
            self.shun(node);
        }
    }

    /// Ends the quarantine of a node.
    pub(crate) fn release_node(&mut self, node: &str) {
        self.blocks.roster.quarantine.remove(node);
        self.nodes.remove(node);
        self.roster_changed();
        self.shun(node);
    }

    /// Nodes that a block of this shape must not get.
    pub(crate) fn left_out(&self, shape: &str) -> Vec<String> {
        let all = self.blocks.roster.quarantine.iter();
        all.filter(|(_, q)| !q.needed_by.contains(shape)).map(|(node, _)| node.clone()).collect()
    }

    /// The scheduler refuses a block. If it was to do without some nodes, that may be why: the next one of its shape may have them, though they get no tasks,
    /// and this one is no failure. Whether it was so.
    pub(crate) fn leave_out_no_more(&mut self, id: BlockId, words: &str) -> bool {
        let Some(block) = self.blocks.all.get_mut(&id).filter(|b| !b.record.exclude.is_empty()) else {
            return false;
        };
        // It ends by our own decision.
        block.cancel_asked = true;
        let (shape, nodes) = (block.record.shape.clone(), block.record.exclude.clone());
        for node in &nodes {
            if let Some(quarantine) = self.blocks.roster.quarantine.get_mut(node) {
                quarantine.needed_by.insert(shape.clone());
            }
        }
        let nodes = nodes.join(", ");
        self.decide(format!(
            "the scheduler has no block of shape {shape} without {nodes} ({words}): the next one may have what is in quarantine, which gets no tasks"
        ));
        self.roster_changed();
        true
    }

    /// Where the scheduler has no other node for a block, one that is in quarantine is tried again: else the block would be there for nothing.
    fn try_what_is_needed(&mut self) {
        let quarantine = &self.blocks.roster.quarantine;
        if quarantine.values().all(|q| q.needed_by.is_empty()) {
            return;
        }
        let shut = |b: &&Block| {
            let here = b.managers.iter().filter_map(|h| self.managers.get(h));
            let shut = here
                .filter(|m| quarantine.get(&m.node).is_some_and(|q| q.needed_by.contains(&b.record.shape)));
            shut.count() as u32 >= b.record.nodes
        };
        let blocks = self.blocks.live().filter(shut);
        let tried = blocks
            .flat_map(|b| b.managers.iter().filter_map(|h| Some((b.record.block, self.managers.get(h)?))));
        let tried: Vec<(BlockId, String)> = tried.map(|(id, m)| (id, m.node.clone())).collect();
        for (id, node) in tried {
            self.decide(format!(
                "node {node} is tried again: {id} has no other, and the scheduler gives none"
            ));
            self.release_node(&node);
        }
    }

    /// Whether a node gets no tasks.
    pub(crate) fn is_shunned(&self, node: &str) -> bool {
        self.blocks.roster.quarantine.contains_key(node)
            || self.nodes.get(node).is_some_and(|b| b.watched_until.is_some())
    }

    /// Brings the managers of a node in line: what has not started there is called back when it gets no more.
    fn shun(&mut self, node: &str) {
        let shunned = self.is_shunned(node);
        let here: Vec<u32> = self.managers.iter().filter(|(_, m)| m.node == node).map(|(h, _)| *h).collect();
        for handle in here {
            if let Some(manager) = self.managers.get_mut(&handle) {
                manager.shunned = shunned;
            }
            if shunned {
                self.recall(handle, None);
            }
            self.refresh_room(handle);
        }
    }
}
