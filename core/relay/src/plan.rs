//! From demand to blocks: a pure function from a snapshot to a plan that carries its reasons in words. `Relay::scale` takes the snapshot and
//! carries the plan out; nothing else decides how many blocks there are. The rules, for people, are in `docs/scaling.md`.

use crate::limits::{LIVE_BLOCKS_MAX, TAIL_NODES_SHARE, WALLTIME_MS_MIN};
use crate::scaling::{NODE_MS_A_MILLI_HOUR, Shape, start_margin_ms};
pub use crate::snapshot::*;
use pf_protocol::resources::{NodeCapacity, Resources};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Decides. Equal snapshots give equal plans.
#[must_use]
pub fn plan(snapshot: &Snapshot) -> Plan {
    let mut planner = Planner::new(snapshot);
    let mut demands: Vec<&Demand> = snapshot.demands.iter().collect();
    // A job with a limit comes last, so that it uses what others have asked for, and the less it may use the later; then the pickiest come first.
    demands.sort_by_key(|d| {
        (d.brake.is_some(), Reverse(d.brake.map(|b| b.left_node_ms)), Reverse(d.time_needed_ms))
    });
    for demand in &demands {
        planner.serve(demand);
    }
    for demand in demands {
        planner.hold_for_the_rest(demand);
    }
    planner.keep_floor();
    planner.find_spare();
    planner.explain()
}

/// A block that is there, with what the demand has left of it.
struct Supply<'a> {
    view: &'a BlockView,
    free_parts: u64,
    taken: bool,
}

struct Planner<'a> {
    s: &'a Snapshot<'a>,
    supplies: Vec<Supply<'a>>,
    /// Parts of a node that are left of each block in `out.submit`.
    asked_parts: Vec<u64>,
    spent_node_ms: u64,
    waiting: u64,
    why_not: BTreeMap<usize, String>,
    out: Plan,
}

impl<'a> Planner<'a> {
    fn new(s: &'a Snapshot<'a>) -> Planner<'a> {
        let mut views: Vec<&BlockView> =
            s.blocks.iter().filter(|b| b.standing != Standing::Leaving).collect();
        // What runs is used first, what is in its tail last; among the queued the oldest is the nearest to its start.
        views.sort_by_key(|b| (b.tail, b.standing == Standing::Queued, b.block));
        let supplies = views.into_iter().map(|view| {
            let running = view.standing == Standing::Running;
            let nodes = u64::from(if running { view.absent_nodes } else { view.nodes });
            let there = if running { view.free_parts } else { 0 };
            Supply { view, free_parts: there + nodes * NODE_PARTS, taken: false }
        });
        let intended: u64 = s.blocks.iter().map(|b| b.intended_node_ms).sum();
        Planner {
            s,
            supplies: supplies.collect(),
            asked_parts: Vec::new(),
            spent_node_ms: s.used_node_ms.saturating_add(intended),
            waiting: 0,
            why_not: BTreeMap::new(),
            out: Plan::default(),
        }
    }

    /// Finds room for what is to have slots at once: in blocks that are there, then in those already planned, then in new ones.
    fn serve(&mut self, demand: &Demand) {
        self.waiting += demand.waiting;
        let mut short = self.at_once(demand);
        for n in 0..self.supplies.len() {
            short -= self.take_from(n, demand, short);
        }
        for n in 0..self.asked_parts.len() {
            short -= self.take_from_asked(n, demand, short);
        }
        while short > 0 {
            let Some(n) = self.open(Some(demand), short) else { break };
            let taken = self.take_from_asked(n, demand, short);
            if taken == 0 {
                break;
            }
            short -= taken;
        }
    }

    /// The rest of what waits asks for nothing, but what is there is not given back before it has run.
    fn hold_for_the_rest(&mut self, demand: &Demand) {
        let mut rest = demand.waiting - self.at_once(demand);
        for n in 0..self.supplies.len() {
            rest -= self.take_from(n, demand, rest);
        }
    }

    /// Tasks that wait and are to have slots at once: a part of all, less those that have one.
    fn at_once(&self, demand: &Demand) -> u64 {
        let all = u128::from(demand.waiting + demand.placed);
        let part = (all * u128::from(self.s.scaling.parallelism_milli)).div_ceil(1_000) as u64;
        // However small the part: something has to run.
        let least = u64::from(demand.placed == 0);
        part.saturating_sub(demand.placed).max(least).min(demand.waiting)
    }

    /// Tasks of the demand that go to a block that is there.
    fn take_from(&mut self, n: usize, demand: &Demand, most: u64) -> u64 {
        let view = self.supplies[n].view;
        let shape = self.s.scaling.shape(&view.shape);
        let pays = match shape {
            Some(shape) => shape.accounts.charged(demand.account.as_deref()) == Some(view.account.as_deref()),
            None => demand.account == view.account,
        };
        let lasts = match (view.standing, view.left_ms) {
            (_, None) => true,
            (Standing::Running, Some(left)) => left >= demand.time_needed_ms,
            (_, Some(walltime)) => self.lasts(&view.shape, walltime, demand.time_needed_ms),
        };
        let Some(each) = self.parts_of_node(&view.shape, &demand.resources).filter(|_| pays && lasts) else {
            return 0;
        };
        let supply = &mut self.supplies[n];
        let by_slots = if view.standing == Standing::Running {
            let absent = NODE_PARTS.checked_div(each).unwrap_or(u64::MAX);
            let absent = absent.saturating_mul(u64::from(view.absent_nodes));
            demand.room.get(&view.block).copied().unwrap_or(0).saturating_add(absent)
        } else {
            u64::MAX
        };
        let by_parts = supply.free_parts.checked_div(each).unwrap_or(u64::MAX);
        let taken = most.min(by_slots).min(by_parts);
        supply.free_parts -= taken * each;
        supply.taken |= taken > 0;
        taken
    }

    fn take_from_asked(&mut self, n: usize, demand: &Demand, most: u64) -> u64 {
        let ask = &self.out.submit[n];
        let Some(shape) = self.s.scaling.shape(&ask.shape) else { return 0 };
        let pays = shape.accounts.charged(demand.account.as_deref()) == Some(ask.account.as_deref());
        let fits = pays && self.lasts(&ask.shape, ask.walltime_ms, demand.time_needed_ms);
        let Some(each) = self.parts_of_node(&ask.shape, &demand.resources).filter(|_| fits) else { return 0 };
        let taken = most.min(self.asked_parts[n].checked_div(each).unwrap_or(u64::MAX));
        self.asked_parts[n] -= taken * each;
        taken
    }

    /// The part of a node of this shape that a task takes; 0 while nobody knows the node, None if it never fits.
    fn parts_of_node(&self, shape: &str, resources: &Resources) -> Option<u64> {
        let Some(node) = self.node(shape) else { return Some(0) };
        match u64::from(resources.fit_count(node)) {
            0 => None,
            fit => Some((NODE_PARTS / fit).max(1)),
        }
    }

    fn node(&self, shape: &str) -> Option<&NodeCapacity> {
        let configured = self.s.scaling.shape(shape).and_then(|s| s.node.as_ref());
        configured.or_else(|| self.s.books.get(shape)?.node.as_ref())
    }

    /// Whether a block that has not begun will have enough walltime left when it has come up.
    fn lasts(&self, shape: &str, walltime_ms: u64, needed_ms: u64) -> bool {
        needed_ms == 0 || walltime_ms >= needed_ms.saturating_add(self.start_ms(shape, walltime_ms))
    }

    fn start_ms(&self, shape: &str, walltime_ms: u64) -> u64 {
        self.s.books.get(shape).map_or(0, |b| b.start_ms).max(start_margin_ms(walltime_ms))
    }

    /// Plans one more block for the demand, or for nobody in particular: its place in `out.submit`.
    fn open(&mut self, demand: Option<&Demand>, tasks: u64) -> Option<usize> {
        for (n, shape) in self.s.scaling.shapes.iter().enumerate() {
            match self.may_open(shape, demand) {
                Ok(mut ask) => {
                    ask.why = match demand {
                        Some(d) => format!("{tasks} of {} tasks that wait find no room", d.waiting),
                        None => format!("at least {} blocks are to be there", self.floor()),
                    };
                    self.spent_node_ms += cost(&ask);
                    self.asked_parts.push(u64::from(ask.nodes) * NODE_PARTS);
                    self.out.submit.push(ask);
                    return Some(self.out.submit.len() - 1);
                }
                Err(why) => {
                    self.why_not.entry(n).or_insert(why);
                }
            }
        }
        None
    }

    /// A block of this shape for the demand, or why there is none.
    fn may_open(&self, shape: &Shape, demand: Option<&Demand>) -> Result<Ask, String> {
        if let Some(why) = &self.s.barred {
            return Err(why.clone());
        }
        let asked = demand.and_then(|d| d.account.as_deref());
        let never = demand.and_then(|d| shape.never(&d.resources, asked, d.time_needed_ms));
        if let Some(why) = never {
            return Err(why);
        }
        let account = shape.accounts.charged(asked).flatten();
        let misfit = demand.and_then(|d| d.resources.why_not_on(self.node(&shape.name)?));
        if let Some(why) = misfit {
            return Err(format!("its nodes are too small: {why}"));
        }
        let needed_ms = demand.map_or(0, |d| d.time_needed_ms);
        if !self.lasts(&shape.name, shape.walltime_ms, needed_ms) {
            return Err(shape.too_short(needed_ms, self.start_ms(&shape.name, shape.walltime_ms)));
        }
        self.not_held_back(shape)?;
        self.below_maxima(shape)?;
        let mut ask = Ask {
            shape: shape.name.clone(),
            nodes: shape.nodes,
            walltime_ms: shape.walltime_ms,
            account: account.map(str::to_owned),
            job: demand.and_then(|d| d.brake).map(|b| b.job),
            ahead: demand.is_none(),
            why: String::new(),
        };
        self.within_node_hours(&mut ask, demand.and_then(|d| d.brake), needed_ms)?;
        Ok(ask)
    }

    /// What earlier failures say.
    fn not_held_back(&self, shape: &Shape) -> Result<(), String> {
        let Some(book) = self.s.books.get(&shape.name) else { return self.few_before_proof(shape, 0) };
        if let Some(why) = &book.stopped {
            return Err(why.clone());
        }
        if self.s.now_ms < book.not_before_ms {
            let seconds = (book.not_before_ms - self.s.now_ms).div_ceil(1_000);
            return Err(format!("waits {seconds} s more: {}", book.not_before_why));
        }
        if book.failures > 0 && self.unproven(shape) > 0 {
            let failures = book.failures;
            return Err(format!(
                "after {failures} blocks that died young one at a time shows whether it is mended"
            ));
        }
        if book.proven { Ok(()) } else { self.few_before_proof(shape, book.failures) }
    }

    /// Until a block of the shape has come up, no more are tried than may fail.
    fn few_before_proof(&self, shape: &Shape, failures: u32) -> Result<(), String> {
        let most = self.s.scaling.failures_max.max(1);
        match self.unproven(shape) + failures >= most {
            true => Err(format!("no block of it has come up yet: {most} are tried at the most")),
            false => Ok(()),
        }
    }

    fn unproven(&self, shape: &Shape) -> u32 {
        let there = self.s.blocks.iter().filter(|b| b.shape == shape.name && !b.came_up).count();
        (there + self.asked_of(shape)) as u32
    }

    fn asked_of(&self, shape: &Shape) -> usize {
        self.out.submit.iter().filter(|a| a.shape == shape.name).count()
    }

    fn below_maxima(&self, shape: &Shape) -> Result<(), String> {
        let most = self.s.scaling.max_blocks.min(LIVE_BLOCKS_MAX);
        let all = self.s.blocks.len() + self.out.submit.len();
        if all as u64 >= u64::from(most) {
            return Err(format!("{all} blocks are there, {most} at the most"));
        }
        let of_it = self.s.blocks.iter().filter(|b| b.shape == shape.name).count() + self.asked_of(shape);
        match of_it as u64 >= u64::from(shape.max_blocks) {
            true => Err(format!("{of_it} blocks of it are there, {} at the most", shape.max_blocks)),
            false => Ok(()),
        }
    }

    /// Shortens the block where a limit of node-hours leaves less than its walltime.
    fn within_node_hours(&self, ask: &mut Ask, brake: Option<Brake>, needed_ms: u64) -> Result<(), String> {
        let nodes = u64::from(ask.nodes.max(1));
        let endpoint = self.s.scaling.node_ms_max.map(|most| {
            (most.saturating_sub(self.spent_node_ms), format!("{} node-hours of the endpoint", hours(most)))
        });
        let job = brake.map(|brake| {
            let asked: u64 = self.out.submit.iter().filter(|a| a.job == Some(brake.job)).map(cost).sum();
            let left = brake.left_node_ms.saturating_sub(asked);
            (left, format!("node-hours that {} may use", brake.job))
        });
        for (left, whose) in endpoint.into_iter().chain(job) {
            let affordable = left / nodes;
            if affordable >= ask.walltime_ms {
                continue;
            }
            let least = WALLTIME_MS_MIN.min(ask.walltime_ms);
            // Schedulers count in minutes, and round up.
            let walltime = affordable - affordable % 60_000;
            if walltime < least || !self.lasts(&ask.shape, walltime, needed_ms) {
                return Err(format!(
                    "of the {whose} {} are left beside what runs and is asked for: too few for a block of {} nodes",
                    hours(left),
                    ask.nodes
                ));
            }
            ask.walltime_ms = walltime;
        }
        Ok(())
    }

    /// Blocks to be there whatever the demand.
    fn floor(&self) -> u32 {
        let scaling = self.s.scaling;
        let first = if self.s.blocks_ever < u64::from(scaling.init_blocks) { scaling.init_blocks } else { 0 };
        scaling.min_blocks.max(first).min(scaling.max_blocks)
    }

    fn keep_floor(&mut self) {
        while ((self.supplies.len() + self.out.submit.len()) as u64) < u64::from(self.floor()) {
            if self.open(None, 0).is_none() {
                return;
            }
        }
    }

    /// Blocks that nothing needs, and those of which few nodes are needed.
    fn find_spare(&mut self) {
        let mut there = self.supplies.len() + self.out.submit.len();
        let floor = self.s.scaling.min_blocks.min(self.s.scaling.max_blocks) as usize;
        let idle_ms = self.s.scaling.idle_ms;
        // The youngest in the queue has waited least; of the running ones the one that ends first is worth least.
        self.supplies.sort_by_key(|s| {
            let queued = s.view.standing == Standing::Queued;
            (!queued, if queued { None } else { s.view.left_ms }, std::cmp::Reverse(s.view.block))
        });
        for supply in self.supplies.iter().filter(|s| !s.taken) {
            let view = supply.view;
            if view.busy_nodes > 0 {
                let few = view.busy_nodes <= (view.nodes / TAIL_NODES_SHARE).max(1);
                if few && view.busy_nodes < view.nodes && view.standing == Standing::Running {
                    self.out.few.insert(view.block);
                    if view.few_for_ms >= idle_ms || view.tail {
                        self.out.tail.insert(view.block);
                    }
                }
                continue;
            }
            self.out.idle.insert(view.block);
            let queued = view.standing == Standing::Queued;
            let ripe = view.idle_for_ms >= idle_ms || view.tail;
            if there <= floor || !ripe || (queued && view.ahead) {
                continue;
            }
            there -= 1;
            let seconds = idle_ms / 1_000;
            match (queued, view.tail) {
                (true, _) => {
                    let why = format!("nothing that waits has needed it for {seconds} s");
                    self.out.cancel.push((view.block, why));
                }
                (false, true) => {
                    self.out.give_back.push((view.block, "the last of its few tasks has ended".into()));
                }
                (false, false) => self.out.give_back.push((view.block, format!("idle for {seconds} s"))),
            }
        }
    }

    /// The plan, with a word on each shape.
    fn explain(mut self) -> Plan {
        for (n, shape) in self.s.scaling.shapes.iter().enumerate() {
            let asked = self.asked_of(shape);
            let words = match (asked, self.why_not.remove(&n)) {
                (0, Some(why)) => format!("no other block: {why}"),
                (0, None) if self.waiting == 0 => "no other block: nothing waits for one".into(),
                (0, None) => "no other block: what waits finds room in those that are there".into(),
                (asked, None) => format!("asks for {asked} more"),
                (asked, Some(why)) => format!("asks for {asked} more; beyond these: {why}"),
            };
            self.out.shapes.push((shape.name.clone(), words));
        }
        self.out
    }
}

/// Node-milliseconds that a block may use.
fn cost(ask: &Ask) -> u64 {
    u64::from(ask.nodes) * ask.walltime_ms
}

/// Node-hours in words.
pub(crate) fn hours(node_ms: u64) -> String {
    format!("{:.2}", (node_ms / NODE_MS_A_MILLI_HOUR) as f64 / 1e3)
}
