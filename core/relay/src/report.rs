//! What people see: the endpoint's report, and why the tasks of a job are where they are.

use crate::classes::words;
use crate::limits::{EXPLAIN_LINES_MAX, REPORT_MANAGERS_MAX};
use crate::relay::Relay;
use pf_protocol::JobId;
use pf_protocol::report::{BlockReport, EndpointReport, ManagerReport};
use std::collections::BTreeMap;

impl Relay {
    /// The endpoint as it is now.
    #[must_use]
    pub fn report(&self) -> EndpointReport {
        let waiting_why = self.classes.all.iter().enumerate().filter(|(_, c)| c.waiting > 0);
        let waiting_why: BTreeMap<String, String> =
            waiting_why.map(|(n, c)| (words(&c.resources), self.why_waiting(n))).collect();
        EndpointReport {
            epoch: self.epoch,
            host: self.config.host.clone(),
            paused: self.blocks.roster.paused.clone(),
            waiting: self.classes.all.iter().map(|c| c.waiting).sum(),
            placed: self.classes.all.iter().map(|c| c.placed).sum(),
            blocks: self.blocks.all.keys().map(|id| self.block_report(*id)).collect(),
            managers: self
                .managers
                .values()
                .take(REPORT_MANAGERS_MAX)
                .map(|m| self.manager_report(m))
                .collect(),
            largest_node: self.blocks.node(&self.config.scaling).cloned(),
            decisions: self.decisions.iter().cloned().collect(),
            waiting_why,
        }
    }

    fn block_report(&self, id: pf_protocol::BlockId) -> BlockReport {
        let Some(block) = self.blocks.all.get(&id) else { return BlockReport::default() };
        let connected =
            block.managers.iter().filter_map(|h| self.managers.get(h)).filter(|m| m.conn.is_some()).count();
        BlockReport {
            block: id,
            incarnation: block.record.incarnation,
            name: block.record.name.clone(),
            scheduler_id: block.record.scheduler_id.clone(),
            state: block.record.state.clone(),
            nodes: block.record.nodes,
            managers: connected as u32,
            walltime_left_ms: block
                .ends_at
                .filter(|_| !block.is_over())
                .map(|at| at.saturating_sub(self.now) / 1_000),
            dir: format!("{}/{id}", self.config.blocks_dir),
            log_tail: block.log_tail.clone(),
        }
    }

    fn manager_report(&self, manager: &crate::manager::Manager) -> ManagerReport {
        let cores: u64 = manager
            .counts
            .iter()
            .map(|(class, n)| u64::from(self.classes.all[*class].resources.cores) * u64::from(*n))
            .sum();
        let load = &manager.load;
        let said = load.running + load.held > 0 || manager.placed == 0;
        ManagerReport {
            manager: manager.id.to_string(),
            node: manager.node.clone(),
            capacity: manager.capacity.clone(),
            cores_busy: if said { load.cores_busy } else { cores.min(manager.capacity.cores.into()) as u32 },
            // Until the manager tells: as many as fit run, the rest is held.
            running: if said { load.running } else { manager.placed.min(manager.capacity.cores) },
            held: if said { load.held } else { manager.placed.saturating_sub(manager.capacity.cores) },
            pid: load.pid,
        }
    }

    /// Why tasks of a class wait, in words.
    fn why_waiting(&self, class: usize) -> String {
        let resources = &self.classes.all[class].resources;
        let usable = self.managers.values().filter(|m| m.usable()).count();
        if let Some(paused) = self.blocks.roster.paused.as_ref().filter(|_| usable == 0) {
            return format!("the endpoint is paused: {paused}");
        }
        if resources.nodes > 1 {
            return "tasks over several nodes cannot run yet".into();
        }
        let node = self.blocks.node(&self.config.scaling);
        if let Some(why) = node.and_then(|n| resources.why_not_on(n)) {
            return format!("no node is large enough: {why}");
        }
        if !self.recovery.ready() {
            return "the relay takes inventory after a restart".into();
        }
        if usable == 0 {
            let live = self.blocks.live().count();
            return match live {
                0 => "there is no block".into(),
                n => format!("{n} block(s) are asked for, no manager is connected yet"),
            };
        }
        let room = self.managers.values().filter(|m| m.usable() && m.room(resources) > 0).count();
        match room {
            0 => format!("all slots of {usable} manager(s) are taken"),
            n => format!("{n} manager(s) have room; jobs wait for max_running or for walltime"),
        }
    }

    /// Why the tasks of a job are where they are.
    pub(crate) fn explain(&self, id: JobId) -> Vec<String> {
        let Some(job) = self.jobs.get(&id) else {
            return vec![format!("{id}: no task of it is at the endpoint now")];
        };
        let class = &self.classes.all[job.class];
        let mut lines = vec![format!(
            "{id}: {} tasks wait here, {} are placed; each needs {}",
            job.waiting_count,
            job.placed,
            words(&class.resources)
        )];
        if job.def.is_none() {
            lines.push("its definition has not come yet".into());
        }
        if let Some(most) = job.def.as_ref().and_then(|d| d.spec.max_running) {
            lines.push(format!("at most {most} of them run at once"));
        }
        if job.waiting_count > 0 {
            lines.push(format!("they wait: {}", self.why_waiting(job.class)));
        }
        if let Some(mean) = job.mean_us {
            lines.push(format!("a task of it ran {:.3} s in the mean", mean as f64 / 1e6));
        }
        let mut by_manager: BTreeMap<u32, u32> = BTreeMap::new();
        for flight in self.flights.values().filter(|f| f.job == id) {
            *by_manager.entry(flight.manager).or_default() += flight.live();
        }
        for (handle, count) in by_manager.into_iter().take(EXPLAIN_LINES_MAX) {
            let Some(manager) = self.managers.get(&handle) else { continue };
            let away = if manager.conn.is_none() { ", which is not heard now" } else { "" };
            lines.push(format!("{count} at manager {} on {}{away}", manager.id, manager.node));
        }
        lines
    }
}
