//! Cuts a small log at every byte and flips bits in it: everything acknowledged is recovered, or the damage is named; never
//! is a record lost in silence, changed or made up.
#![expect(clippy::unwrap_used, reason = "a test ends where an expectation fails")]

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{Found, quick};
use pf_store::{Class, Options, RecordType, StoreError, tools};

const KIND: RecordType = RecordType { kind: 7, version: 1, critical: true };

fn options() -> Options {
    Options { block_bytes: 512, log_segment_bytes: 4096, ..quick() }
}

/// A folder with a closed log of several segments; its records' bytes.
fn written(dir: &Path, commits: u64) -> Vec<Vec<u8>> {
    let (mut store, _, _, _) = common::open(dir, options());
    let mut expected = Vec::new();
    for commit in 0..commits {
        for record in 0..3u64 {
            let bytes = vec![(commit * 3 + record) as u8; 40 + 60 * record as usize];
            store.append(KIND, Class::Ordinary, &bytes).unwrap();
            expected.push(bytes);
        }
        store.sync().unwrap();
    }
    store.close().unwrap();
    expected
}

fn copy(from: &Path, to: &Path, with_owner: bool) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if with_owner || !entry.file_name().to_string_lossy().starts_with("epoch-") {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn logs(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut logs: Vec<_> =
        entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("log-")).collect();
    logs.sort();
    logs
}

/// Reads the folder as recovery does. Always a prefix of what was written, or an error that names a file and an offset.
fn read(dir: &Path, expected: &[Vec<u8>]) -> Result<usize, StoreError> {
    let mut found = Found::default();
    let result = tools::dump(dir, &mut |replay| found.take(replay));
    let bytes = found.bytes();
    assert!(expected.starts_with(&bytes), "records were changed or made up");
    match result {
        Ok(position) => {
            assert_eq!(position.0 as usize, bytes.len());
            Ok(bytes.len())
        }
        Err(StoreError::Empty { .. }) => Ok(0),
        Err(error) => {
            let named = matches!(
                error,
                StoreError::Damaged { .. } | StoreError::Missing { .. } | StoreError::UnknownFormat { .. }
            );
            assert!(named, "{error}");
            assert!(error.hint().is_some());
            Err(error)
        }
    }
}

/// How many records frames themselves prove to have been synced, beside what the owner file says: all but those of the
/// last commit, since each frame names the position synced before it.
fn proven(expected: &[Vec<u8>]) -> usize {
    expected.len() - 3
}

#[test]
fn an_orderly_closed_log_never_loses_a_record_in_silence() {
    let origin = tempfile::tempdir().unwrap();
    let expected = written(origin.path(), 18);
    let paths = logs(origin.path());
    assert!(paths.len() >= 3, "{paths:?}");
    let refused = AtomicUsize::new(0);
    for path in &paths {
        let sound = std::fs::read(path).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        let look = |what: &str, at: usize| match read(origin.path(), &expected) {
            Ok(count) => {
                assert_eq!(count, expected.len(), "{what} at {at} of {} lost records", path.display())
            }
            Err(_) => {
                refused.fetch_add(1, Ordering::Relaxed);
            }
        };
        for (at, byte) in sound.iter().enumerate() {
            file.write_all_at(&[byte ^ (1 << (at % 8))], at as u64).unwrap();
            look("flip", at);
            file.write_all_at(&[*byte], at as u64).unwrap();
        }
        for at in (0..sound.len()).rev() {
            file.set_len(at as u64).unwrap();
            look("cut", at);
        }
        file.write_all_at(&sound, 0).unwrap();
    }
    assert!(refused.into_inner() > 1000);
    assert_eq!(read(origin.path(), &expected).unwrap(), expected.len());
}

#[test]
fn a_log_without_its_owner_file_loses_at_most_what_nothing_proves() {
    let closed = tempfile::tempdir().unwrap();
    let expected = written(closed.path(), 14);
    let origin = tempfile::tempdir().unwrap();
    copy(closed.path(), origin.path(), false);
    let path = logs(origin.path()).pop().unwrap();
    let sound = std::fs::read(&path).unwrap();
    for at in 0..sound.len() {
        let mut bad = sound.clone();
        bad[at] ^= 0x80;
        std::fs::write(&path, &bad).unwrap();
        if let Ok(count) = read(origin.path(), &expected) {
            assert!(count >= proven(&expected), "flip at {at} left {count} records");
        }
    }
}

#[test]
fn a_torn_end_is_cut_and_the_log_goes_on() {
    let closed = tempfile::tempdir().unwrap();
    let expected = written(closed.path(), 5);
    let path = logs(closed.path()).pop().unwrap();
    let sound = std::fs::read(&path).unwrap();
    let end = sound.iter().rposition(|byte| *byte != 0).unwrap();
    // The last commit as it may look when power fails before its sync: any part of it is there.
    for at in (end - 300..=end).step_by(7) {
        let dir = tempfile::tempdir().unwrap();
        copy(closed.path(), dir.path(), false);
        let mut torn = sound.clone();
        torn[at..].fill(0);
        std::fs::write(dir.path().join(path.file_name().unwrap()), &torn).unwrap();
        let (mut store, opened, found, _) = common::open(dir.path(), options());
        assert_eq!(found.bytes(), expected[..expected.len() - 3]);
        store.append(KIND, Class::Ordinary, b"goes on").unwrap();
        store.close().unwrap();
        let again = common::all_records(dir.path());
        assert_eq!(again.list.last().unwrap().0, opened.position.0 + 1);
        assert_eq!(again.list.last().unwrap().2, b"goes on");
    }
}

#[test]
fn bytes_behind_a_seal_do_not_count() {
    // A broker that was fenced off goes on writing: frames into its segment, a segment and a snapshot of its own.
    let zombie = tempfile::tempdir().unwrap();
    let before = written(zombie.path(), 2);
    let taken = tempfile::tempdir().unwrap();
    copy(zombie.path(), taken.path(), false);
    let mut expected = before.clone();
    {
        let (mut store, opened, _, _) = common::open(taken.path(), options());
        assert_eq!(opened.epoch, 2);
        store.append(KIND, Class::Ordinary, b"of the taker").unwrap();
        store.sync().unwrap();
        expected.push(b"of the taker".to_vec());
    }
    // The same history with more records, as the zombie would have written it in epoch 1.
    let longer = tempfile::tempdir().unwrap();
    copy(zombie.path(), longer.path(), false);
    let source = tempfile::tempdir().unwrap();
    let (mut store, _, _, events) = common::open(source.path(), options());
    for bytes in before.iter().cloned().chain((0..30).map(|index| vec![index; 200])) {
        store.append(KIND, Class::Ordinary, &bytes).unwrap();
        store.sync().unwrap();
    }
    let position = store.snapshot(b"state of a zombie".to_vec()).unwrap();
    events.wait(|event| *event == pf_store::SyncEvent::SnapshotSynced(position));
    store.close().unwrap();
    for entry in std::fs::read_dir(source.path()).unwrap() {
        let entry = entry.unwrap();
        let to = taken.path().join(entry.file_name());
        if !to.exists() {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
    let first = taken.path().join("log-00000001-00000001");
    let mut bytes = std::fs::read(&first).unwrap();
    bytes.resize(bytes.len() + 2048, 0x5a);
    std::fs::write(&first, bytes).unwrap();
    std::fs::remove_file(taken.path().join("epoch-00000001")).unwrap_or_default();
    assert_eq!(common::all_records(taken.path()).bytes(), expected);
    assert_eq!(common::all_records(taken.path()).bytes(), expected);
}

#[test]
fn a_missing_segment_is_named() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 14);
    let paths = logs(dir.path());
    std::fs::remove_file(&paths[0]).unwrap();
    let error = tools::check(dir.path()).unwrap_err();
    assert!(matches!(&error, StoreError::Missing { file, .. } if *file == paths[0]), "{error}");
}

#[test]
fn check_counts_and_backup_can_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, opened, _, _) = common::open(dir.path(), options());
    let mut blobs = Vec::new();
    for index in 0..60u32 {
        blobs.push(store.blob_put(1, Class::Ordinary, &index.to_le_bytes()).unwrap());
        store.append(KIND, Class::Ordinary, &[1; 300]).unwrap();
        store.sync().unwrap();
    }
    // The store is open and in use.
    let report = tools::check(dir.path()).unwrap();
    assert_eq!((report.log_id, report.position.0, report.blobs), (opened.log_id, 60, 60));
    assert_eq!(report.torn_payload, []);
    let place = tempfile::tempdir().unwrap();
    let dest = place.path().join("backup");
    assert_eq!(tools::backup(dir.path(), &dest).unwrap().0, 60);
    assert!(tools::backup(dir.path(), &dest).is_err());
    let (copy, again, found, _) = common::open(&dest, options());
    assert_eq!((again.log_id, found.list.len()), (opened.log_id, 60));
    for (index, blob) in blobs.iter().enumerate() {
        assert_eq!(copy.blob_reader().read_checked(*blob).unwrap(), (index as u32).to_le_bytes());
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(tools::check(empty.path()), Err(StoreError::Empty { .. })));
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn backups_of_a_busy_store_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    // The owner's word moves as fast as the log, so that readers meet every order of the two.
    let renew_every = std::time::Duration::from_millis(1);
    let (mut store, _, _, events) = common::open(dir.path(), Options { renew_every, ..options() });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also when an expectation fails here: the writer would go on for ever.
        let stopping = Stop(&stop);
        let writer = scope.spawn(|| {
            let mut snapshots = 0;
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..200 {
                    store.append(KIND, Class::Ordinary, &[1; 200]).unwrap();
                    store.sync().unwrap();
                }
                let position = store.snapshot(store.appended().0.to_string().into_bytes()).unwrap();
                events.wait(|event| *event == pf_store::SyncEvent::SnapshotSynced(position));
                snapshots += 1;
            }
            snapshots
        });
        let place = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let dest = place.path().join(round.to_string());
            let at_least = match tools::check(dir.path()) {
                Ok(report) => report.position.0,
                // A snapshot removed what was being read, or the first commit is still to come.
                Err(StoreError::Io { .. } | StoreError::Missing { .. } | StoreError::Empty { .. }) => 0,
                Err(error) => panic!("{error}"),
            };
            let position = tools::backup(dir.path(), &dest).unwrap().0;
            assert!(position >= at_least);
            let found = common::all_records(&dest);
            let start = found.snapshot.as_ref().map_or(0, |(position, _)| *position);
            assert_eq!(start + found.list.len() as u64, position);
        }
        drop(stopping);
        assert!(writer.join().unwrap() > 0);
    });
}

/// Power fails: of the payload segments nothing is there but what was synced, of the log a part. Every record that is
/// recovered has its blob.
#[test]
fn a_cut_at_every_byte_keeps_the_blobs_of_what_it_keeps() {
    let closed = tempfile::tempdir().unwrap();
    let (mut store, _, _, _) = common::open(closed.path(), options());
    let mut kept = Vec::new();
    for commit in 0..3u8 {
        for index in 0..2u8 {
            let bytes = vec![commit * 2 + index + 1; 150 * usize::from(index)];
            let blob = store.blob_put(1, Class::Ordinary, &bytes).unwrap();
            let place = [blob.segment, blob.offset, blob.len].map(u32::to_le_bytes).concat();
            store.append(KIND, Class::Ordinary, &place).unwrap();
            kept.push((blob, bytes));
        }
        store.sync().unwrap();
    }
    store.close().unwrap();
    let log = logs(closed.path()).pop().unwrap();
    let sound = std::fs::read(&log).unwrap();
    let end = sound.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut counts = std::collections::BTreeSet::new();
    for at in 512..=end {
        let dir = tempfile::tempdir().unwrap();
        copy(closed.path(), dir.path(), false);
        let payload = dir.path().join("payload-00000001");
        std::fs::OpenOptions::new().write(true).open(payload).unwrap().set_len(64).unwrap();
        std::fs::write(dir.path().join(log.file_name().unwrap()), &sound[..at]).unwrap();
        let (store, _, found, _) = common::open(dir.path(), options());
        assert_eq!(found.list.len() % 2, 0);
        for ((blob, bytes), (_, _, record)) in kept.iter().zip(&found.list) {
            let place = [blob.segment, blob.offset, blob.len].map(u32::to_le_bytes).concat();
            assert_eq!(*record, place);
            assert_eq!(store.blob_reader().read_checked(*blob).unwrap(), *bytes);
        }
        counts.insert(found.list.len());
    }
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), [0, 2, 4, 6]);
}

#[test]
fn a_payload_segment_that_the_log_still_names_never_gets_a_successor_of_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _, _, _) = common::open(dir.path(), options());
    assert_eq!(store.blob_put(1, Class::Ordinary, b"of a job that ends").unwrap().segment, 1);
    store.append(KIND, Class::Ordinary, b"job 1").unwrap();
    store.close().unwrap();
    let (mut store, _, _, _) = common::open(dir.path(), options());
    assert_eq!(store.blob_sweep(), 1);
    // Too large to be carried, so that nothing but its own segment has it.
    let large = vec![9; 200_000];
    let blob = store.blob_put(2, Class::Ordinary, &large).unwrap();
    assert!(blob.segment > 1, "{blob:?}");
    store.append(KIND, Class::Ordinary, b"job 2").unwrap();
    store.close().unwrap();
    assert!(!dir.path().join("payload-00000001").exists());
    let (store, _, found, _) = common::open(dir.path(), options());
    assert_eq!(found.list.len(), 2);
    assert_eq!(store.blob_reader().read_checked(blob).unwrap(), large);
}
