//! A manager, as the relay counts it: what it offers, what of that is in use, what it was told.

use crate::plan::NODE_PARTS;
use crate::scaling::Accounts;
use pf_protocol::message::{AttemptBatch, Inventory};
use pf_protocol::report::ManagerReport;
use pf_protocol::resources::{NodeCapacity, Resources};
use pf_protocol::{AttemptId, JobId, ManagerId, Micros};
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Debug)]
pub(crate) struct Manager {
    pub id: ManagerId,
    pub node: String,
    /// Protocol version of its session.
    pub version: u16,
    pub capacity: NodeCapacity,
    /// None while it is away.
    pub conn: Option<u64>,
    pub away_since: Micros,
    /// When its walltime is over, on the relay's clock.
    pub ends_at: Micros,
    free_cores: i64,
    free_gpus: i64,
    free_memory: i64,
    free_amounts: BTreeMap<String, i64>,
    /// Tasks here, by class.
    pub counts: BTreeMap<usize, u32>,
    /// Tasks here.
    pub placed: u32,
    /// First attempts of the flights here.
    pub flights: BTreeSet<AttemptId>,
    /// Highest number of its batches that was taken, and that was confirmed to it.
    pub received_seq: u64,
    pub confirmed_seq: u64,
    /// Jobs that it knows in this session.
    pub defined: BTreeSet<JobId>,
    /// Pages of the inventory of this session.
    pub inventory: Inventory,
    pub inventory_complete: bool,
    /// The inventory was judged: it may get work.
    pub judged: bool,
    pub draining: bool,
    /// The request that is not answered yet.
    pub recall: Option<u64>,
    /// The suspect that runs here.
    pub suspect: Option<AttemptId>,
    /// Placed in this turn, not sent yet.
    pub out: Vec<AttemptBatch>,
    /// Under how many free cores it stands among the usable ones.
    pub room_key: Option<i64>,
    /// Who pays for its block: its shape's accounts, and the one that it is charged to.
    pub accounts: Accounts,
    pub account: Option<String>,
    /// Its block is in its tail: it gets tasks when no other has room.
    pub last_choice: bool,
    /// Its node gets no tasks.
    pub shunned: bool,
    /// Restarts of its block's job when it came.
    pub life: u32,
    /// When it connected first.
    pub since: Micros,
    /// Whether it stands in the list of those that changed.
    pub touched: bool,
    pub load: ManagerReport,
}

impl Manager {
    pub fn new(id: ManagerId, node: String, capacity: NodeCapacity) -> Manager {
        let amounts = capacity.amounts.iter().map(|(k, v)| (k.clone(), *v as i64)).collect();
        Manager {
            id,
            node,
            version: 0,
            conn: None,
            away_since: 0,
            ends_at: 0,
            free_cores: i64::from(capacity.cores),
            free_gpus: i64::from(capacity.gpus_milli),
            free_memory: i64::try_from(capacity.memory_bytes).unwrap_or(i64::MAX),
            free_amounts: amounts,
            capacity,
            counts: BTreeMap::new(),
            placed: 0,
            flights: BTreeSet::new(),
            received_seq: 0,
            confirmed_seq: 0,
            defined: BTreeSet::new(),
            inventory: Inventory::default(),
            inventory_complete: false,
            judged: false,
            draining: false,
            recall: None,
            suspect: None,
            out: Vec::new(),
            room_key: None,
            accounts: Accounts::Unused,
            account: None,
            last_choice: false,
            shunned: false,
            life: 0,
            since: 0,
            touched: false,
            load: ManagerReport::default(),
        }
    }

    /// Whether it may get work.
    pub fn usable(&self) -> bool {
        self.conn.is_some() && self.judged && !self.draining && !self.shunned
    }

    /// Whether its block's account may be charged for a job that names this one.
    pub fn pays_for(&self, account: Option<&str>) -> bool {
        self.accounts.charged(account) == Some(self.account.as_deref())
    }

    /// What of the node is free in its scarcest dimension, in [`NODE_PARTS`].
    pub fn free_parts(&self) -> u64 {
        let part = |free: i64, of: u64| match of {
            0 => NODE_PARTS,
            of => u64::try_from(u128::from(free.max(0) as u64) * u128::from(NODE_PARTS) / u128::from(of))
                .unwrap_or(NODE_PARTS),
        };
        let capacity = &self.capacity;
        part(self.free_cores, capacity.cores.into())
            .min(part(self.free_gpus, capacity.gpus_milli.into()))
            .min(part(self.free_memory, capacity.memory_bytes))
    }

    pub fn free_cores(&self) -> i64 {
        self.free_cores
    }

    /// Counts `n` tasks of a class in (or out, if negative).
    pub fn count(&mut self, class: usize, resources: &Resources, n: i64) {
        self.free_cores -= i64::from(resources.cores) * n;
        self.free_gpus -= i64::from(resources.gpus_milli) * n;
        self.free_memory -= i64::try_from(resources.memory_bytes).unwrap_or(i64::MAX).saturating_mul(n);
        for (name, want) in &resources.amounts {
            *self.free_amounts.entry(name.clone()).or_default() -= *want as i64 * n;
        }
        let here = self.counts.entry(class).or_default();
        *here = here.wrapping_add_signed(n as i32);
        self.placed = self.placed.wrapping_add_signed(n as i32);
        if *here == 0 {
            self.counts.remove(&class);
        }
    }

    /// How many more tasks of these resources find a free slot.
    pub fn room(&self, resources: &Resources) -> u32 {
        if self.free_cores < i64::from(resources.cores)
            || !resources.features.is_subset(&self.capacity.features)
        {
            return 0;
        }
        let per = |free: i64, want: u64| match want {
            0 => u32::MAX,
            want => u32::try_from(free.max(0) as u64 / want).unwrap_or(u32::MAX),
        };
        let mut room = per(self.free_cores, resources.cores.into())
            .min(per(self.free_gpus, resources.gpus_milli.into()));
        if self.capacity.memory_bytes > 0 {
            room = room.min(per(self.free_memory, resources.memory_bytes));
        }
        for (name, want) in &resources.amounts {
            room = room.min(per(self.free_amounts.get(name).copied().unwrap_or(0), *want));
        }
        // Something that asks for nothing at all still is a task.
        room.min(self.capacity.cores.max(1).saturating_mul(64))
    }

    /// Tasks in front of the slots, if only this class runs here.
    pub fn ahead(&self, class: usize, slots: u32) -> Option<u32> {
        let here = self.counts.get(&class).copied().unwrap_or(0);
        (here == self.placed).then_some(here.saturating_sub(slots))
    }

    /// Nothing is in use beyond what there is, unless only one class runs here (then the rest is work ahead).
    pub fn fits(&self) -> bool {
        let memory_fits = self.capacity.memory_bytes == 0 || self.free_memory >= 0;
        self.counts.len() <= 1
            || (self.free_cores >= 0
                && self.free_gpus >= 0
                && memory_fits
                && self.free_amounts.values().all(|f| *f >= 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_what_is_left_in_every_dimension() {
        let node = NodeCapacity { cores: 8, gpus_milli: 2_000, memory_bytes: 100, ..NodeCapacity::default() };
        let mut manager = Manager::new(ManagerId::default(), "n".into(), node);
        let gpu = Resources { cores: 2, gpus_milli: 500, ..Resources::default() };
        assert_eq!(manager.room(&gpu), 4);
        manager.count(1, &gpu, 3);
        assert_eq!(manager.room(&gpu), 1);
        assert_eq!(manager.room(&Resources::default()), 2);
        assert_eq!(manager.room(&Resources { memory_bytes: 60, ..Resources::default() }), 1);
        assert_eq!(
            manager.room(&Resources { features: ["x".to_string()].into(), ..Resources::default() }),
            0
        );
        manager.count(1, &gpu, -3);
        assert_eq!((manager.placed, manager.counts.len(), manager.room(&gpu)), (0, 0, 4));
    }
}
