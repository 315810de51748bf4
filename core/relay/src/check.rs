//! Invariants by name. The simulation and the tests call [`Relay::check`] after each event; nothing calls it in production.

use crate::flight::State;
use crate::relay::Relay;
use std::collections::BTreeMap;

impl Relay {
    /// Panics when an invariant is broken.
    ///
    /// # Panics
    /// That is its purpose.
    pub fn check(&self) {
        self.no_slot_is_over_committed();
        self.each_attempt_is_counted_once();
        self.waiting_is_counted();
        self.credit_is_kept();
        self.payloads.check();
    }

    fn no_slot_is_over_committed(&self) {
        for manager in self.managers.values() {
            let fits = manager.fits() || manager.flights.iter().any(|f| f.epoch != self.epoch);
            assert!(fits, "no_slot_is_over_committed: {} {:?}", manager.id, manager.counts);
        }
    }

    fn each_attempt_is_counted_once(&self) {
        let mut by_manager: BTreeMap<u32, u32> = BTreeMap::new();
        let mut by_job: BTreeMap<_, u64> = BTreeMap::new();
        let mut by_class: BTreeMap<usize, u64> = BTreeMap::new();
        let mut bytes = 0;
        for (first, flight) in &self.flights {
            assert_eq!(*first, flight.first, "each_attempt_is_counted_once: key");
            let live = flight.live_places().count() as u32;
            assert!(live > 0 && live == flight.live(), "each_attempt_is_counted_once: live");
            *by_manager.entry(flight.manager).or_default() += live;
            *by_job.entry(flight.job).or_default() += u64::from(live);
            *by_class.entry(flight.class).or_default() += u64::from(live);
            bytes += flight.live_places().map(|p| flight.item_len(p)).sum::<u64>();
            assert!(flight.live_places().all(|p| flight.state(p) != State::Over));
        }
        for (handle, manager) in &self.managers {
            assert_eq!(manager.placed, by_manager.remove(handle).unwrap_or(0), "placed of {}", manager.id);
            assert_eq!(manager.placed, manager.counts.values().sum::<u32>(), "counts of {}", manager.id);
            assert!(
                manager.room_key.is_none_or(|k| self.room.contains(&(k, *handle))),
                "room of {}",
                manager.id
            );
        }
        assert!(by_manager.is_empty(), "flights of managers that are gone: {by_manager:?}");
        for (id, job) in &self.jobs {
            assert_eq!(job.placed, by_job.remove(id).unwrap_or(0), "placed of {id}");
        }
        assert!(by_job.is_empty(), "flights of jobs that are gone: {by_job:?}");
        for (number, class) in self.classes.all.iter().enumerate() {
            assert_eq!(class.placed, by_class.remove(&number).unwrap_or(0), "placed of class {number}");
        }
        assert_eq!(bytes, self.placed_bytes, "placed_bytes");
    }

    fn waiting_is_counted(&self) {
        let mut by_class: BTreeMap<usize, u64> = BTreeMap::new();
        let mut bytes = 0;
        for (id, job) in &self.jobs {
            let chunks = || job.chunks();
            let count: u64 = chunks().map(|c| c.len()).sum();
            assert_eq!(count, job.waiting_count, "waiting_is_counted: {id}");
            bytes += chunks().map(|c| c.blob.len() as u64).sum::<u64>();
            *by_class.entry(job.class).or_default() += count;
            let queues = self.ready.values().flatten().filter(|other| *other == id).count();
            assert_eq!(queues, usize::from(job.ready), "ready queues of {id}");
            assert!(job.ready || job.available() == 0, "{id} is forgotten");
        }
        for (number, class) in self.classes.all.iter().enumerate() {
            assert_eq!(
                class.waiting,
                by_class.get(&number).copied().unwrap_or(0),
                "waiting of class {number}"
            );
        }
        assert_eq!(bytes, self.waiting_bytes, "waiting_bytes");
    }

    fn credit_is_kept(&self) {
        // What a peer sends beyond its credit is its fault, not a reason to panic; what is granted is bounded.
        let open = self.credit.tasks_upto.saturating_sub(self.credit.tasks_taken);
        assert!(open <= pf_protocol::limits::RELAY_TASKS_MAX, "credit_is_kept: {open}");
    }
}
