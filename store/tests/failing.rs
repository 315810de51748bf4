//! A sync fails: nothing is acknowledged any more, and a new start has everything that was. Once by a kernel that answers
//! `fdatasync` of the sync thread with EIO, once by a disk that has less room than it told its file system.
#![expect(clippy::unwrap_used, reason = "a test ends where an expectation fails")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use common::{Events, Found, quick};
use pf_store::{Class, Position, RecordType, Store, StoreError, SyncEvent};

const KIND: RecordType = RecordType { kind: 7, version: 1, critical: true };

/// From now on `fdatasync` by this thread fails with EIO. False where the kernel has no filters.
fn fail_syncs_of_this_thread() -> bool {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: libc::SYS_fdatasync as u32,
        },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EIO as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: both calls only read their arguments, and `filter` points at `program`, which lives until they return.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0
    }
}

/// A store whose syncs fail behind the first event: its callback runs on the sync thread, so that a filter for the calling
/// thread is a filter for it alone. The callback then waits for a word, so that what was queued meanwhile comes next.
fn open(dir: &Path) -> (Store, Events, mpsc::Sender<()>) {
    let events = Events::default();
    let told = events.callback();
    let (go_on, wait) = mpsc::channel();
    let armed = AtomicBool::new(true);
    let on_sync = Box::new(move |event| {
        told(event);
        if armed.swap(false, Ordering::Relaxed) {
            assert!(fail_syncs_of_this_thread(), "this kernel has no seccomp filters");
            wait.recv().unwrap();
        }
    });
    let mut found = Found::default();
    let (store, _) = Store::open(dir, quick(), &mut |replay| found.take(replay), on_sync).unwrap();
    (store, events, go_on)
}

/// The folder as the next process finds it: nobody holds it.
fn left_by_a_dead_process(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_name().to_string_lossy().starts_with("epoch-") {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    copy
}

fn failed(event: &SyncEvent) -> bool {
    matches!(event, SyncEvent::Failed { .. })
}

#[test]
fn a_failed_sync_acknowledges_nothing_and_a_restart_replays() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, events, go_on) = open(dir.path());
    store.blob_put(1, Class::Ordinary, b"so that the segment is there").unwrap();
    store.append(KIND, Class::Ordinary, b"kept").unwrap();
    assert_eq!(store.sync().unwrap(), Position(1));
    let blob = store.blob_put(1, Class::Ordinary, b"payload").unwrap();
    store.append(KIND, Class::Ordinary, b"in doubt").unwrap();
    store.flush();
    go_on.send(()).unwrap();
    assert!(matches!(store.sync(), Err(StoreError::Failed { .. })));
    events.wait(failed);
    assert!(matches!(store.append(KIND, Class::Outcome, b"late"), Err(StoreError::Failed { .. })));
    assert!(matches!(store.blob_put(1, Class::Outcome, b"late"), Err(StoreError::Failed { .. })));
    assert_eq!(store.synced(), Position(1));
    assert!(store.close().is_err());
    let synced: Vec<_> = events.seen().into_iter().filter(|event| !failed(event)).collect();
    assert_eq!(synced, [SyncEvent::Synced(Position(1))]);

    // A new start decides: the record in doubt is there whole, with its blob, or not at all. Here its bytes were written.
    let again = left_by_a_dead_process(dir.path());
    let (mut store, opened, found, _) = common::open(again.path(), quick());
    assert_eq!((opened.epoch, found.bytes()), (2, vec![b"kept".to_vec(), b"in doubt".to_vec()]));
    assert_eq!(store.blob_reader().read_checked(blob).unwrap(), b"payload");
    store.append(KIND, Class::Ordinary, b"goes on").unwrap();
    assert_eq!(store.sync().unwrap(), Position(3));
}

#[test]
fn no_snapshot_takes_the_place_of_a_log_whose_blobs_are_not_synced() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, events, go_on) = open(dir.path());
    let blob = store.blob_put(1, Class::Ordinary, b"payload").unwrap();
    store.append(KIND, Class::Ordinary, b"record").unwrap();
    // One sync, of the log, made both durable: the filter is in place behind it.
    assert_eq!(store.sync().unwrap(), Position(1));
    store.snapshot(b"state".to_vec()).unwrap();
    go_on.send(()).unwrap();
    events.wait(|event| matches!(event, SyncEvent::Failed { reason } if reason.contains("payload-")));
    drop(store);
    assert!(events.seen().iter().all(|event| !matches!(event, SyncEvent::SnapshotSynced(_))));
    let again = left_by_a_dead_process(dir.path());
    let (store, _, found, _) = common::open(again.path(), quick());
    assert_eq!((found.snapshot, found.list.len()), (None, 1));
    assert_eq!(store.blob_reader().read_checked(blob).unwrap(), b"payload");
}

/// A loop device that promises more than its backing file system has, mounted as ext4; taken apart at the end.
struct LyingDisk {
    backing: tempfile::TempDir,
    mounted: Vec<PathBuf>,
    device: Option<String>,
}

impl LyingDisk {
    const PROMISED_MB: u32 = 64;
    const REAL_MB: u32 = 16;

    fn new() -> Option<Self> {
        let mut disk = LyingDisk { backing: tempfile::tempdir().unwrap(), mounted: Vec::new(), device: None };
        let real = disk.backing.path().join("real");
        let size = format!("size={}m", Self::REAL_MB);
        disk.mount(&["-t", "tmpfs", "-o", &size, "tmpfs"], real.clone())?;
        let image = real.join("image");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(u64::from(Self::PROMISED_MB) << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(&image))?;
        let shown = Command::new("losetup").args(["--find", "--show"]).arg(&image).output().ok()?;
        let device = String::from_utf8(shown.stdout).unwrap().trim().to_string();
        if device.is_empty() {
            return None;
        }
        disk.device = Some(device.clone());
        disk.mount(&["-t", "ext4", &device], disk.dir())?;
        Some(disk)
    }

    fn dir(&self) -> PathBuf {
        self.backing.path().join("disk")
    }

    fn mount(&mut self, what: &[&str], at: PathBuf) -> Option<()> {
        std::fs::create_dir(&at).unwrap();
        run(Command::new("mount").args(what).arg(&at))?;
        self.mounted.push(at);
        Some(())
    }
}

fn run(command: &mut Command) -> Option<()> {
    let output = command.output().ok()?;
    output.status.success().then_some(())
}

impl Drop for LyingDisk {
    fn drop(&mut self) {
        // The file system on the device, then the device, then what backs it.
        while let Some(at) = self.mounted.pop() {
            assert!(run(Command::new("umount").arg(&at)).is_some(), "cannot unmount {}", at.display());
            if let Some(device) = self.device.take() {
                assert!(run(Command::new("losetup").args(["-d", &device])).is_some(), "{device}");
            }
        }
    }
}

#[test]
fn a_disk_that_fails_is_noticed_and_what_was_acknowledged_is_there() {
    let Some(disk) = LyingDisk::new() else {
        eprintln!(
            "SKIPPED a_disk_that_fails_is_noticed: needs root, a free loop device and mkfs.ext4 on this machine"
        );
        return;
    };
    let dir = disk.dir().join("store");
    let (mut store, _, _, events) = common::open(&dir, quick());
    let mut blobs = Vec::new();
    // It ends well before the file system believes itself full.
    for index in 0..u64::from(LyingDisk::PROMISED_MB) * 8 {
        let Ok(blob) = store.blob_put(1, Class::Ordinary, &vec![index as u8; 100_000]) else { break };
        store.append(KIND, Class::Ordinary, &[index as u8; 100]).unwrap();
        if store.sync().is_err() {
            break;
        }
        blobs.push(blob);
    }
    events.wait(|event| matches!(event, SyncEvent::Failed { reason } if reason.contains("sync /")));
    assert_eq!(store.synced(), Position(blobs.len() as u64));
    assert!(blobs.len() > 50, "{}", blobs.len());
    drop(store);
    // Read from the device, not from the cache, which has what the device refused.
    std::fs::write("/proc/sys/vm/drop_caches", "1").unwrap_or_default();
    let mut found = Found::default();
    let position = pf_store::tools::dump(&dir, &mut |replay| found.take(replay)).unwrap();
    assert!(position.0 >= blobs.len() as u64, "{position:?} of {}", blobs.len());
    for (index, record) in found.bytes().iter().take(blobs.len()).enumerate() {
        assert_eq!(record, &[index as u8; 100]);
    }
}
