//! After WELCOME: what the broker thinks is at an endpoint, and what its relay holds. What is held by nobody is queued again.

use crate::broker::{Broker, Turn};
use crate::limits::PAGE_RANGES_MAX;
use crate::relays::Phase;
use pf_protocol::message::{Holding, Return, Unfinished, UnfinishedJob};
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

    /// A page of what the relay holds; with the last one the rest is queued again and the link is up.
    pub(crate) fn on_holding(&mut self, endpoint: EndpointId, page: Holding, turn: &mut Turn<'_>) {
        let Some(live) = self.endpoints.get_mut(&endpoint) else { return };
        let jobs = live.jobs.clone();
        let Some(link) = live.link.as_mut().filter(|link| link.phase == Phase::Reconciling) else { return };
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
                continue;
            }
            let assigned = live.assigned_of(&job.ended.missing(job.total));
            live.claimed = holding.get(&id).map(|held| held.intersection(&assigned)).unwrap_or_default();
            let mut unclaimed = assigned;
            unclaimed.subtract(&live.claimed);
            // A new relay has to know what it has adopted: its resources, and what its loss would mean.
            let adopted = !live.claimed.is_empty();
            self.define(endpoint, adopted.then_some(id), turn);
            self.give_back(id, &unclaimed, turn);
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

/// Cuts a set into sets of at most [`PAGE_RANGES_MAX`] ranges.
fn pages(tasks: &Ranges) -> Vec<Ranges> {
    let cut = |pairs: &[(u32, u32)]| {
        let mut page = Ranges::new();
        pairs.iter().for_each(|&(first, count)| page.insert_range(first, count));
        page
    };
    tasks.pairs().chunks(PAGE_RANGES_MAX).map(cut).collect()
}
