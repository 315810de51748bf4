//! What takes another process or another file system: kill -9, a second holder, a full disk, a failing write. Children are
//! this test binary again, told by an environment variable what to be.
#![expect(clippy::unwrap_used, reason = "a test ends where an expectation fails")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use common::{Events, quick};
use pf_store::{Class, Options, Position, RecordType, StoreError, SyncEvent};

const KIND: RecordType = RecordType { kind: 7, version: 1, critical: true };
const ROLE: &str = "PF_STORE_TEST_ROLE";
const DIR: &str = "PF_STORE_TEST_DIR";

/// Starts this binary as a child that runs only `child_main`.
fn child(role: &str, dir: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child_main", "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

/// Reads the child's words up to a line that ends with `word`; what it acknowledged last before.
fn read_until(out: &mut impl BufRead, enough: impl Fn(&str, u64) -> bool) -> u64 {
    let mut acknowledged = 0;
    let mut line = String::new();
    loop {
        line.clear();
        if out.read_line(&mut line).unwrap() == 0 {
            return acknowledged;
        }
        if let Some((_, position)) = line.trim_end().split_once("acknowledged ") {
            acknowledged = position.parse().unwrap();
        }
        if enough(line.trim_end(), acknowledged) {
            return acknowledged;
        }
    }
}

/// From now on this process can write no file beyond 40,000 bytes.
fn forbid_large_files() {
    use nix::sys::resource::{Resource, setrlimit};
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, 40_000, 40_000).unwrap();
}

#[test]
fn child_main() {
    let (Ok(role), Some(dir)) = (std::env::var(ROLE), std::env::var_os(DIR)) else { return };
    let (mut store, _, _, events) = common::open(Path::new(&dir), quick());
    for index in 1u64.. {
        if role == "limited" && index == 20 {
            forbid_large_files();
        }
        let blob = match store.blob_put(1, Class::Ordinary, &index.to_le_bytes()) {
            Ok(blob) => blob,
            Err(error) => {
                println!("refused {error}");
                break;
            }
        };
        let mut bytes = [blob.segment, blob.offset, blob.len].map(u32::to_le_bytes).concat();
        bytes.resize(12 + (index % 300) as usize, index as u8);
        store.append(KIND, Class::Ordinary, &bytes).unwrap();
        store.flush();
        if index % 5 == 0 {
            match store.sync() {
                Ok(position) => println!("acknowledged {}", position.0),
                Err(error) => {
                    println!("failed {error}");
                    break;
                }
            }
        }
    }
    let failed = |event: &SyncEvent| matches!(event, SyncEvent::Failed { .. });
    events.wait(failed);
    println!("told {}", events.seen().iter().filter(|event| failed(event)).count());
}

#[test]
fn kill_9_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut total = 0;
    for round in 1..=4u64 {
        let (mut process, mut out) = child("write", dir.path());
        let acknowledged = read_until(&mut out, |_, position| position >= total + 40 * round);
        process.kill().unwrap();
        process.wait().unwrap();
        // What it said before it died counts too.
        let acknowledged = acknowledged.max(read_until(&mut out, |_, _| false));
        let (store, opened, found, _) = common::open(dir.path(), quick());
        assert!(opened.position.0 >= acknowledged, "{} < {acknowledged}", opened.position.0);
        assert_eq!(opened.epoch, 2 * round);
        for (_, _, bytes) in &found.list {
            let part = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let blob = pf_store::BlobRef { segment: part(0), offset: part(4), len: part(8) };
            assert_eq!(store.blob_reader().read_checked(blob).unwrap().len(), 8);
        }
        total = opened.position.0;
    }
}

#[test]
fn a_second_holder_is_refused_while_the_first_lives() {
    let dir = tempfile::tempdir().unwrap();
    let (mut process, mut out) = child("write", dir.path());
    read_until(&mut out, |_, position| position > 0);
    let error = common::try_open(dir.path(), quick()).map(|_| ()).unwrap_err();
    assert!(matches!(error, StoreError::Held { pid, .. } if pid == process.id()), "{error}");
    assert!(error.to_string().starts_with("another broker ("), "{error}");
    assert!(error.hint().is_some());
    process.kill().unwrap();
    process.wait().unwrap();
    common::open(dir.path(), quick());
}

#[test]
fn a_failed_write_is_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (mut process, out) = child("limited", dir.path());
    let mut said = Vec::new();
    for line in out.lines() {
        said.push(line.unwrap());
    }
    process.wait().unwrap();
    let text = said.join("\n");
    assert!(
        text.contains("failed the store has failed: ") || text.contains("refused the store has failed: "),
        "{text}"
    );
    assert!(text.contains("told 1"), "{text}");
    let acknowledged = said.iter().rev().find_map(|line| line.split_once("acknowledged ")).unwrap().1;
    let (_, opened, _, _) = common::open(dir.path(), quick());
    assert!(opened.position.0 >= acknowledged.parse().unwrap());
}

/// A small file system of its own, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(mega_bytes: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mega_bytes}m,mode=0700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

fn small_disk_options() -> Options {
    Options {
        log_segment_bytes: 256 << 10,
        reserve_bytes: 2 << 20,
        low_water_bytes: 1 << 20,
        renew_every: std::time::Duration::from_millis(50),
        ..quick()
    }
}

#[test]
fn a_full_disk_refuses_new_work_and_still_takes_outcomes() {
    let Some(disk) = SmallDisk::mount(8) else {
        eprintln!(
            "SKIPPED a_full_disk_refuses_new_work_and_still_takes_outcomes: cannot mount a tmpfs here (needs root)"
        );
        return;
    };
    let dir = disk.0.path().join("store");
    let (mut store, _, _, events) = common::open(&dir, small_disk_options());
    let reserve = dir.join("reserve");
    common::until(|| std::fs::metadata(&reserve).is_ok_and(|reserve| reserve.len() == 2 << 20));

    let refused = loop {
        match store.append(KIND, Class::Ordinary, &[1; 4000]) {
            Ok(_) => store.sync().unwrap(),
            Err(error) => break error,
        };
    };
    assert!(matches!(refused, StoreError::Full { .. }), "{refused}");
    assert!(refused.is_retryable() && refused.hint().is_some());
    assert!(matches!(store.blob_put(1, Class::Ordinary, b"x"), Err(StoreError::Full { .. })));
    events.wait(|event| *event == SyncEvent::Full(true));

    // Somebody else fills the rest.
    let filler = disk.0.path().join("filler");
    assert!(std::fs::write(&filler, vec![1; 8 << 20]).is_err());
    let first = store.appended();
    for _ in 0..300 {
        store.blob_put(1, Class::Outcome, &[2; 500]).unwrap();
        store.append(KIND, Class::Outcome, &[2; 500]).unwrap();
        store.sync().unwrap();
    }
    assert_eq!(store.synced(), Position(first.0 + 300));
    assert!(!reserve.exists());

    // Space comes back: the reserve is made whole, then new work is welcome again.
    std::fs::remove_file(&filler).unwrap();
    let position = store.snapshot(b"all".to_vec()).unwrap();
    events.wait(|event| *event == SyncEvent::SnapshotSynced(position));
    common::until(|| store.admit().is_ok());
    assert_eq!(std::fs::metadata(&reserve).unwrap().len(), 2 << 20);
    store.append(KIND, Class::Ordinary, b"again").unwrap();
    store.close().unwrap();
    assert_eq!(common::all_records(&dir).list.len(), 1);
}

#[test]
fn a_disk_filled_to_the_last_byte_ends_without_a_false_acknowledgement() {
    let Some(disk) = SmallDisk::mount(4) else {
        eprintln!("SKIPPED a_disk_filled_to_the_last_byte: cannot mount a tmpfs here (needs root)");
        return;
    };
    let dir = disk.0.path().join("store");
    let mut options = small_disk_options();
    options.reserve_bytes = 256 << 10;
    let (mut store, _, _, events) = common::open(&dir, options.clone());
    let acknowledged = loop {
        if store.append(KIND, Class::Outcome, &[1; 4000]).is_err() || store.sync().is_err() {
            break store.synced();
        }
    };
    events.wait(|event| matches!(event, SyncEvent::Failed { reason } if reason.contains("No space left")));
    drop(store);
    // With a little room it opens again with everything that was acknowledged.
    let report = pf_store::tools::check(&dir).unwrap();
    assert!(report.position >= acknowledged);
    assert!(acknowledged.0 > 300, "{acknowledged:?}");
    let _: Events = events;
}

#[test]
fn a_holder_that_was_fenced_off_says_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = quick();
    options.renew_every = std::time::Duration::from_millis(20);
    let (mut store, _, _, events) = common::open(dir.path(), options);
    store.append(KIND, Class::Ordinary, b"mine").unwrap();
    assert_eq!(store.sync().unwrap(), Position(1));
    // Another host has taken the folder: all that the first one can see is the next epoch.
    std::fs::write(dir.path().join("epoch-00000002"), b"").unwrap();
    events.wait(|event| matches!(event, SyncEvent::Failed { reason } if reason.contains("was taken")));
    assert!(matches!(store.append(KIND, Class::Outcome, b"late"), Err(StoreError::Failed { .. })));
    let before = events.seen().len();
    assert!(store.close().is_err());
    assert_eq!(events.seen().len(), before);
}
