//! A store lives: append, sync, blobs, snapshot, reopen.
#![expect(clippy::unwrap_used, reason = "a test ends where an expectation fails")]

mod common;

use std::collections::BTreeMap;

use common::{Events, all_records, open, quick};
use pf_store::{Class, Position, RecordType, StoreError, SyncEvent};

const KIND: RecordType = RecordType { kind: 7, version: 1, critical: true };

#[test]
fn records_come_back_in_order_with_their_types() {
    let dir = tempfile::tempdir().unwrap();
    let other = RecordType { kind: 900, version: 3, critical: false };
    let (mut store, opened, _, _) = open(dir.path(), quick());
    assert!(opened.created);
    assert_eq!(store.append(KIND, Class::Ordinary, b"one").unwrap(), Position(1));
    assert_eq!(store.append(other, Class::Outcome, b"").unwrap(), Position(2));
    assert_eq!(store.synced(), Position(0));
    assert_eq!(store.sync().unwrap(), Position(2));
    assert_eq!(store.close().unwrap(), Position(2));

    let (store, again, records, _) = open(dir.path(), quick());
    assert_eq!((again.log_id, again.epoch, again.created), (opened.log_id, 2, false));
    assert_eq!(again.position, Position(2));
    assert_eq!(records.list, [(1, KIND, b"one".to_vec()), (2, other, b"".to_vec())]);
    assert_eq!(store.appended(), Position(2));
}

#[test]
fn the_sync_thread_reports_each_position_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _, _, events) = open(dir.path(), quick());
    for index in 0..200u32 {
        store.append(KIND, Class::Ordinary, &index.to_le_bytes()).unwrap();
        store.flush();
    }
    events.wait(|event| *event == SyncEvent::Synced(Position(200)));
    let positions: Vec<u64> = events
        .seen()
        .iter()
        .filter_map(|event| if let SyncEvent::Synced(at) = event { Some(at.0) } else { None })
        .collect();
    assert!(positions.is_sorted_by(|a, b| a < b), "{positions:?}");
}

#[test]
fn many_segments_and_restarts_are_one_history() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for _ in 0..5 {
        let (mut store, _, records, _) = open(dir.path(), quick());
        assert_eq!(records.bytes(), expected);
        for index in 0..40u64 {
            let bytes = vec![index as u8; 3000];
            store.append(KIND, Class::Ordinary, &bytes).unwrap();
            store.sync().unwrap();
            expected.push(bytes);
        }
    }
    assert_eq!(all_records(dir.path()).bytes(), expected);
}

#[test]
fn a_snapshot_replaces_the_log_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _, _, events) = open(dir.path(), quick());
    for round in 1..=3u64 {
        for _ in 0..50 {
            store.append(KIND, Class::Ordinary, &[9; 2000]).unwrap();
            store.flush();
        }
        let position = store.snapshot(format!("state {round}").into_bytes()).unwrap();
        assert!(matches!(store.snapshot(Vec::new()), Err(StoreError::SnapshotRunning)));
        store.append(KIND, Class::Ordinary, b"after").unwrap();
        store.sync().unwrap();
        events.wait(|event| *event == SyncEvent::SnapshotSynced(position));
    }
    assert!(store.pressure().log_bytes < 64 << 10);
    store.close().unwrap();
    let found = all_records(dir.path());
    assert_eq!(found.snapshot, Some((152, b"state 3".to_vec())));
    assert_eq!(found.list, [(153, KIND, b"after".to_vec())]);
}

#[test]
fn blobs_are_read_at_once_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _, _, _) = open(dir.path(), quick());
    let reader = store.blob_reader();
    let mut blobs = BTreeMap::new();
    for index in 0..100u32 {
        let bytes = vec![index as u8; 1000 + index as usize];
        let blob = store.blob_put(1, Class::Ordinary, &bytes).unwrap();
        assert_eq!(reader.read(blob).unwrap(), bytes);
        blobs.insert(blob, bytes);
        if index % 7 == 0 {
            store.append(KIND, Class::Ordinary, b"x").unwrap();
            store.sync().unwrap();
        }
    }
    store.append(KIND, Class::Ordinary, b"x").unwrap();
    store.sync().unwrap();
    let check = |reader: &pf_store::BlobReader| {
        for (blob, bytes) in &blobs {
            assert_eq!(&reader.read_checked(*blob).unwrap(), bytes);
            let part = pf_store::BlobRef { offset: blob.offset + 10, len: 20, ..*blob };
            assert_eq!(reader.read(part).unwrap(), bytes[10..30]);
            assert!(reader.read_checked(part).is_err());
        }
    };
    check(&reader);
    store.close().unwrap();
    let (store, _, _, _) = open(dir.path(), quick());
    check(&store.blob_reader());
    let beyond = pf_store::BlobRef { segment: 1, offset: u32::MAX, len: u32::MAX };
    assert!(store.blob_reader().read(beyond).is_err());
}

#[test]
fn a_payload_segment_dies_with_its_jobs() {
    let dir = tempfile::tempdir().unwrap();
    let segments = || {
        let names = std::fs::read_dir(dir.path()).unwrap();
        names
            .filter(|name| name.as_ref().unwrap().file_name().to_string_lossy().starts_with("payload-"))
            .count()
    };
    let (mut store, _, _, _) = open(dir.path(), quick());
    let mut places = Vec::new();
    for job in 0..10u64 {
        for _ in 0..3 {
            places.push((job, store.blob_put(job, Class::Ordinary, &[1; 10_000]).unwrap()));
        }
    }
    store.append(KIND, Class::Ordinary, b"jobs").unwrap();
    store.sync().unwrap();
    let before = segments();
    assert!(before >= 5, "{before}");
    for job in 0..9 {
        store.append(KIND, Class::Outcome, b"drop").unwrap();
        store.blob_drop(job);
    }
    store.append(KIND, Class::Ordinary, b"end").unwrap();
    store.close().unwrap();
    assert!(segments() <= 2, "{}", segments());
    let (mut store, _, _, _) = open(dir.path(), quick());
    for (job, blob) in places.iter().filter(|(job, _)| *job == 9) {
        store.blob_live(*job, blob.segment);
    }
    store.blob_sweep();
    store.append(KIND, Class::Ordinary, b"x").unwrap();
    store.sync().unwrap();
    let kept = places.last().unwrap().1;
    assert_eq!(store.blob_reader().read_checked(kept).unwrap(), [1; 10_000]);
    store.blob_drop(9);
    store.close().unwrap();
    assert_eq!(segments(), 0);
}

#[test]
fn limits_and_options_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _, _, _) = open(dir.path(), quick());
    let long = vec![0; pf_store::limits::RECORD_BYTES_MAX + 1];
    assert!(matches!(
        store.append(KIND, Class::Ordinary, &long),
        Err(StoreError::TooLarge { what: "record", .. })
    ));
    let mut busy = None;
    for _ in 0..10_000 {
        // Never flushed: so it piles up.
        if let Err(error) = store.append(KIND, Class::Ordinary, &long[..100_000]) {
            busy = Some(error);
            break;
        }
        if store.pressure().waiting_bytes > 2 * quick().queue_bytes_max {
            break;
        }
    }
    assert!(busy.is_some_and(|error| error.is_retryable()));
    let mut options = quick();
    options.block_bytes = 1000;
    let other = tempfile::tempdir().unwrap();
    let error = common::try_open(other.path(), options).map(|_| ()).unwrap_err();
    assert!(matches!(error, StoreError::Option { name: "block_bytes", .. }));
}

#[test]
fn a_record_that_the_caller_refuses_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _, _, _) = open(dir.path(), quick());
    for _ in 0..3 {
        store.append(KIND, Class::Ordinary, b"x").unwrap();
    }
    store.close().unwrap();
    let refuse = &mut |replay: pf_store::Replay<'_>| match replay {
        pf_store::Replay::Record(record) if record.position == Position(2) => Err("unknown record 7".into()),
        _ => Ok(()),
    };
    let events = Events::default();
    let error =
        pf_store::Store::open(dir.path(), quick(), refuse, events.callback()).map(|_| ()).unwrap_err();
    assert!(matches!(error, StoreError::Replay { position: 2, offset: 4096, .. }), "{error}");
    // The refusal harmed nothing, and the folder was given back.
    assert_eq!(all_records(dir.path()).list.len(), 3);
}
