//! What the store's tests share: small options, a collecting replay, events that can be waited for.
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test binary uses another part of it, so expect cannot say it"
)]

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use pf_store::{OnSync, Opened, Options, RecordType, Replay, Store, StoreError, SyncEvent};

/// Small segments, no reserve, so that tests see many files and write few bytes.
pub fn quick() -> Options {
    Options {
        block_bytes: 4096,
        log_segment_bytes: 64 << 10,
        payload_segment_bytes: 64 << 10,
        reserve_bytes: 0,
        low_water_bytes: 0,
        queue_bytes_max: 16 << 20,
        lease: Duration::from_secs(15),
        renew_every: Duration::from_secs(4),
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub snapshot: Option<(u64, Vec<u8>)>,
    pub list: Vec<(u64, RecordType, Vec<u8>)>,
}

impl Found {
    pub fn bytes(&self) -> Vec<Vec<u8>> {
        self.list.iter().map(|(_, _, bytes)| bytes.clone()).collect()
    }

    pub fn take(&mut self, replay: Replay<'_>) -> Result<(), pf_store::ReplayError> {
        match replay {
            Replay::Snapshot { position, reader, .. } => {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes)?;
                self.snapshot = Some((position.0, bytes));
            }
            Replay::Record(record) => {
                self.list.push((record.position.0, record.record_type, record.bytes.to_vec()));
            }
        }
        Ok(())
    }
}

#[derive(Clone, Default)]
pub struct Events(Arc<(Mutex<Vec<SyncEvent>>, Condvar)>);

impl Events {
    pub fn callback(&self) -> OnSync {
        let shared = Arc::clone(&self.0);
        Box::new(move |event| {
            shared.0.lock().unwrap().push(event);
            shared.1.notify_all();
        })
    }

    pub fn seen(&self) -> Vec<SyncEvent> {
        self.0.0.lock().unwrap().clone()
    }

    pub fn wait(&self, wanted: impl Fn(&SyncEvent) -> bool) {
        let mut seen = self.0.0.lock().unwrap();
        while !seen.iter().any(&wanted) {
            let (next, timeout) = self.0.1.wait_timeout(seen, Duration::from_secs(60)).unwrap();
            assert!(!timeout.timed_out(), "no such event in {next:?}");
            seen = next;
        }
    }
}

pub fn try_open(dir: &Path, options: Options) -> Result<(Store, Opened, Found, Events), StoreError> {
    let events = Events::default();
    let mut found = Found::default();
    let (store, opened) = Store::open(dir, options, &mut |replay| found.take(replay), events.callback())?;
    Ok((store, opened, found, events))
}

pub fn open(dir: &Path, options: Options) -> (Store, Opened, Found, Events) {
    try_open(dir, options).unwrap()
}

/// Opens, collects, closes.
pub fn all_records(dir: &Path) -> Found {
    open(dir, quick()).2
}

/// Waits for a condition that another thread brings about.
pub fn until(mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "the condition does not come true");
        std::thread::yield_now();
    }
}
