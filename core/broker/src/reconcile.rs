//! After WELCOME: what the broker thinks is at an endpoint, and what its relay holds. What is held by nobody is queued again, unless it may have
//! started and its job does not want that.

use crate::broker::{Broker, Turn};
use crate::job::Job;
use crate::limits::PAGE_RANGES_MAX;
use crate::outcomes::OwnEnd;
use crate::relays::Phase;
use pf_protocol::job::OnLost;
use pf_protocol::message::{Holding, Rest, Return, Unfinished, UnfinishedJob};
use pf_protocol::outcome::{OutcomeKind, Ran};
use pf_protocol::{EndpointId, Ranges};

impl Broker {
    /// Tells a relay what was handed to its endpoint and has not ended.
    pub(crate) fn send_unfinished(&mut self, conn: u64, endpoint: EndpointId, turn: &mut Turn<'_>) {
        let jobs = self.endpoints.get(&endpoint).map(|e| e.jobs.clone()).unwrap_or_default();
        let mut page = Unfinished::default();
        let mut room = PAGE_RANGES_MAX;
        for id in jobs {
            let (Some(live), Some(job)) = (self.jobs.get(&id), self.state.jobs.get(&id)) else { continue };
            if live.assigned == 0 {
                continue;
            }
            let assigned = live.assigned_of(&job.ended.missing(job.total));
            let (cancel, kill) = (job.cancel.clone(), job.cancel.kill);
            for tasks in pages(&assigned) {
                if room < tasks.pairs().len() {
                    self.send(conn, std::mem::take(&mut page).into(), turn);
                    room = PAGE_RANGES_MAX;
                }
                room -= tasks.pairs().len();
                let cancel = if cancel.whole { tasks.clone() } else { tasks.intersection(&cancel.tasks) };
                page.jobs.push(UnfinishedJob { job: id, tasks, cancel, kill });
            }
        }
        page.last = true;
        self.send(conn, page.into(), turn);
    }

    /// A page of what the relay holds; with the last one the link is up, and it is decided what becomes of the rest.
    pub(crate) fn on_holding(&mut self, endpoint: EndpointId, page: Holding, turn: &mut Turn<'_>) {
        let Some(live) = self.endpoints.get_mut(&endpoint) else { return };
        let jobs = live.jobs.clone();
        // A later list tells more of the tasks that are left unproven, and nothing of others: those may be on their way.
        let Some(link) = live.link.as_mut().filter(|link| link.phase != Phase::Granting) else { return };
        let is_later = link.phase == Phase::Up;
        for (job, tasks) in page.jobs {
            link.holding.entry(job).or_default().union_with(&tasks);
        }
        if !page.last {
            return;
        }
        link.phase = Phase::Up;
        let holding = std::mem::take(&mut link.holding);
        for id in jobs {
            let (Some(live), Some(job)) = (self.jobs.get_mut(&id), self.state.jobs.get(&id)) else {
                continue;
            };
            if live.assigned == 0 {
                self.refresh(id);
                continue;
            }
            let mut assigned = live.assigned_of(&job.ended.missing(job.total));
            if is_later {
                assigned = assigned.intersection(&live.unproven);
            }
            let held = holding.get(&id).map(|held| held.intersection(&assigned)).unwrap_or_default();
            let mut unclaimed = assigned;
            unclaimed.subtract(&held);
            let doubtful = doubtful(job, page.rest, &unclaimed);
            unclaimed.subtract(&doubtful);
            let waits = job.spec.on_lost == OnLost::Wait;
            live.unproven = if waits { doubtful.clone() } else { Ranges::new() };
            if !is_later {
                live.claimed.clone_from(&held);
            }
            live.claimed.union_with(&live.unproven);
            // A new relay has to know what it has adopted: its resources, and what its loss would mean.
            self.define(endpoint, (!held.is_empty()).then_some(id), turn);
            self.give_back(id, &unclaimed, turn);
            if !waits && !doubtful.is_empty() {
                self.end_by_broker(id, &doubtful, &possibly_started(), turn);
            }
            // It may have left the queue because the relay before was of an older version.
            self.refresh(id);
        }
        self.to_pump.insert(endpoint);
    }

    /// Tasks that the relay gives back unstarted.
    pub(crate) fn on_return(&mut self, endpoint: EndpointId, returned: Return, turn: &mut Turn<'_>) {
        for (id, tasks) in returned.jobs {
            if self.state.jobs.get(&id).is_some_and(|job| job.endpoint == endpoint) {
                self.give_back(id, &tasks, turn);
            }
        }
    }
}

/// Of `unclaimed`, the tasks that neither are queued again now nor may be: they may have started, and the job does not want them run twice
/// (`fail`), or not before it is proven that they are over (`wait`).
fn doubtful(job: &Job, rest: Rest, unclaimed: &Ranges) -> Ranges {
    let doubted = match job.spec.on_lost {
        OnLost::Rerun => false,
        OnLost::Fail => rest != Rest::NotStarted,
        OnLost::Wait => rest == Rest::Unknown,
    };
    if !doubted || job.cancel.whole {
        return Ranges::new();
    }
    let mut doubtful = unclaimed.intersection(&job.handed);
    doubtful.subtract(&job.cancel.tasks);
    doubtful
}

fn possibly_started() -> OwnEnd {
    OwnEnd {
        kind: OutcomeKind::Lost,
        ran: Ran::Unknown,
        message: "it was handed to a node that was lost together with its relay".into(),
        hint: "it may have run; `pf job retry --failed` runs it again".into(),
    }
}

/// Cuts a set into sets of at most [`PAGE_RANGES_MAX`] ranges.
fn pages(tasks: &Ranges) -> Vec<Ranges> {
    let cut = |pairs: &[(u32, u32)]| {
        let mut page = Ranges::new();
        pairs.iter().for_each(|&(first, count)| page.insert_range(first, count));
        page
    };
    tasks.pairs().chunks(PAGE_RANGES_MAX).map(cut).collect()
}
