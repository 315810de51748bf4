//! What people see: the endpoint's report, and why the tasks of a job are where they are.

use crate::blocks::Block;
use crate::classes::{Class, class_words};
use crate::io::BlockRecord;
use crate::limits::{EXPLAIN_BLOCKS_MAX, EXPLAIN_LINES_MAX, REPORT_MANAGERS_MAX};
use crate::plan::hours;
use crate::relay::Relay;
use crate::scaling::{NODE_MS_A_MILLI_HOUR, Shape};
use pf_protocol::JobId;
use pf_protocol::report::{
    BlockReport, BlockState, EndpointReport, ManagerReport, NodeHours, QuarantineReport, ShapeReport,
};
use std::collections::BTreeMap;

impl Relay {
    /// The endpoint as it is now.
    #[must_use]
    pub fn report(&self) -> EndpointReport {
        let waiting_why = self.classes.all.iter().enumerate().filter(|(_, c)| c.waiting > 0);
        let waiting_why: BTreeMap<String, String> =
            waiting_why.map(|(n, c)| (class_words(c), self.why_waiting(n))).collect();
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
            largest_node: self.blocks.largest_node(&self.config.scaling),
            decisions: self.decisions.iter().cloned().collect(),
            waiting_why,
            shapes: self.shape_reports(),
            quarantine: self.quarantined(),
            node_hours: self.node_hours(),
        }
    }

    fn shape_reports(&self) -> Vec<ShapeReport> {
        let roster = &self.blocks.roster;
        let report = |shape: &Shape| ShapeReport {
            shape: shape.name.clone(),
            blocks: self.blocks.live().filter(|b| b.record.shape == shape.name).count() as u32,
            blocks_max: shape.max_blocks.min(self.config.scaling.max_blocks),
            nodes: shape.nodes,
            walltime_ms: shape.walltime_ms,
            failures: roster.shapes.get(&shape.name).map_or(0, |b| b.failures),
            why: self.why_of_shape(&shape.name),
        };
        self.config.scaling.shapes.iter().map(report).collect()
    }

    fn quarantined(&self) -> Vec<QuarantineReport> {
        let nodes = self.blocks.roster.quarantine.iter().map(|(node, q)| QuarantineReport {
            node: node.clone(),
            reason: match q.needed_by.is_empty() {
                true => q.reason.clone(),
                false => {
                    format!("{}; the scheduler has no block without it, so blocks may have it", q.reason)
                }
            },
            until_ms: q.until_ms,
        });
        nodes.collect()
    }

    fn why_of_shape(&self, name: &str) -> String {
        let words = self.blocks.shape_words.iter().find(|(shape, _)| shape == name);
        words.map_or_else(|| "the relay has only begun".into(), |(_, why)| why.clone())
    }

    fn node_hours(&self) -> NodeHours {
        let roster = &self.blocks.roster;
        let mut hours = NodeHours {
            used_node_ms: roster.used_node_ms,
            idle_node_ms: roster.idle_node_ms,
            intended_node_ms: 0,
            limit_node_ms: self.config.scaling.node_ms_max,
        };
        for block in self.blocks.live() {
            let (used, whole) = (self.used_until_now(&block.record), block.record.intended_node_ms());
            hours.used_node_ms += used;
            hours.idle_node_ms += block.record.idle_node_ms.min(used);
            hours.intended_node_ms += whole.saturating_sub(used);
        }
        hours
    }

    /// What a block has used until now, or in all if it is over.
    fn used_until_now(&self, record: &BlockRecord) -> u64 {
        match record.state {
            BlockState::Ended(_) => record.used_node_ms,
            _ => record.used_node_ms + record.part_node_ms(self.unix_ms()),
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
            shape: block.record.shape.clone(),
            account: block.record.account.clone(),
            used_node_ms: self.used_until_now(&block.record),
            idle_node_ms: block.record.idle_node_ms,
            tail: block.tail && !block.is_over(),
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
        let class = &self.classes.all[class];
        let resources = &class.resources;
        let able = || self.managers.values().filter(|m| m.usable() && m.pays_for(class.account.as_deref()));
        if resources.nodes > 1 {
            return "tasks over several nodes cannot run yet".into();
        }
        if !self.recovery.ready() {
            return "the relay takes inventory after a restart".into();
        }
        let why = match (able().count(), able().filter(|m| m.room(resources) > 0).count()) {
            (0, _) => match self.blocks.live().count() {
                0 => "there is no block".into(),
                _ => self.blocks_that_come(),
            },
            (some, 0) => format!("all slots of {some} manager(s) are taken"),
            (_, room) => format!("{room} manager(s) have room; jobs wait for max_running or for walltime"),
        };
        match self.why_no_other_block(class) {
            Some(other) => format!("{why}; {other}"),
            None => why,
        }
    }

    /// What the blocks are doing of which no manager is here that could be of use.
    fn blocks_that_come(&self) -> String {
        let word = |block: &Block| {
            let id = block.record.block;
            match &block.record.state {
                BlockState::Intended => format!("{id} is about to be submitted"),
                BlockState::Queued(why) if why.is_empty() => format!("{id} is queued"),
                BlockState::Queued(why) => format!("{id} is queued: {why}"),
                BlockState::Held(why) => format!("{id} is held: {why}"),
                BlockState::Suspended(why) => format!("{id} is suspended: {why}"),
                BlockState::Unknown(why) => format!("what became of {id} is not known: {why}"),
                BlockState::Impossible(why) => format!("{id} will never run: {why}"),
                BlockState::Ending | BlockState::Ended(_) => format!("{id} is ending"),
                BlockState::Starting | BlockState::Running if block.managers.is_empty() => {
                    format!(
                        "{id} runs, but no manager of it has connected (`pf block log {id}` tells what its pilot tries)"
                    )
                }
                BlockState::Starting | BlockState::Running => format!("no manager of {id} may run them"),
            }
        };
        let words = self.blocks.live().take(EXPLAIN_BLOCKS_MAX).map(word).collect::<Vec<_>>().join("; ");
        let more = self.blocks.live().count().saturating_sub(EXPLAIN_BLOCKS_MAX);
        let more = if more > 0 { format!("; {more} more blocks") } else { String::new() };
        let failed = self.blocks.poll_failed.iter().map(|words| format!("; {words}")).collect::<String>();
        format!("{words}{more}{failed}")
    }

    /// Why no further block comes for a class, in words: of each shape what keeps it.
    fn why_no_other_block(&self, class: &Class) -> Option<String> {
        if let Some(paused) = &self.blocks.roster.paused {
            return Some(format!("the endpoint is paused: {paused}"));
        }
        let shapes = &self.config.scaling.shapes;
        let why = |shape: &Shape| {
            let node = self.blocks.node(&self.config.scaling, &shape.name);
            if let Some(why) = node.and_then(|n| class.resources.why_not_on(n)) {
                return format!("no node is large enough: {why}");
            }
            match (shape.accounts.charged(class.account.as_deref()), &class.account) {
                (None, Some(account)) => format!("account {account} may not be charged"),
                _ => self.why_of_shape(&shape.name),
            }
        };
        let words = shapes.iter().map(|s| match shapes.len() {
            1 => why(s),
            _ => format!("{}: {}", s.name, why(s)),
        });
        Some(words.collect::<Vec<_>>().join("; ")).filter(|w| !w.is_empty())
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
            class_words(class)
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
        if job.fetching_count() > 0 {
            lines.push(format!(
                "{} of them wait until their large items have come here",
                job.fetching_count()
            ));
        }
        if let Some(limit) = job.def.as_ref().and_then(|d| d.spec.max_node_hours_milli) {
            let limit = hours(limit.saturating_mul(NODE_MS_A_MILLI_HOUR));
            lines.push(format!(
                "of the {limit} node-hours that it may use {} are used",
                hours(self.node_ms_used(id))
            ));
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
