//! Every size, count and time of the store, each with its reason. Read by all modules of this crate; the defaults of
//! [`Options`](crate::Options) come from here.

use std::time::Duration;

/// Alignment of commit frames in the log, in bytes. The page cache writes whole 4 KiB pages and most disks have 4 KiB
/// physical sectors behind 512-byte ones, where a torn read-modify-write can damage the neighbours. With 4 KiB the
/// page and the sector of an acknowledged frame are never written again. 512 would save space in the file, but no I/O,
/// and is safe only where the device promises atomic 512-byte sectors; it can be chosen in `Options`.
pub const BLOCK_BYTES: u32 = 4096;

/// Smallest block that can be chosen: one logical sector.
pub const BLOCK_BYTES_MIN: u32 = 512;

/// Largest block that can be chosen: keeps the scan for frames behind a damage fine enough.
pub const BLOCK_BYTES_MAX: u32 = 65536;

/// Size to which a log segment is preallocated, in bytes: 4,096 small commits, or 100,000 records in batches, before a
/// new file has to be made; small enough that an idle broker costs little disk.
pub const LOG_SEGMENT_BYTES: u64 = 16 << 20;

/// How far ahead of the last frame the log is filled with zeros while the disk has nothing else to do, in bytes. The first
/// write into a preallocated block makes the file system commit its journal with the sync; an overwrite does not. On a
/// busy ext4 that is the difference between 0.3 ms and 3 ms a commit.
pub const ZERO_AHEAD_BYTES: u64 = 1 << 20;

/// Bytes of zeros written and synced in one step: what a commit that comes meanwhile waits for.
pub const ZERO_STEP_BYTES: u64 = 512 << 10;

/// A commit up to this size, in bytes, is one where latency counts more than writing its blocks twice.
pub const LIGHT_COMMIT_BYTES: usize = 64 << 10;

/// Size at which a new payload segment is begun, in bytes: payload dies by whole segments, so smaller ones free space
/// sooner, larger ones keep the folder short.
pub const PAYLOAD_SEGMENT_BYTES: u32 = 64 << 20;

/// Step in which a payload segment is preallocated, in bytes, so that a full disk is noticed before a write.
pub const PAYLOAD_STEP_BYTES: u64 = 4 << 20;

/// Largest payload of one commit frame, in bytes: bounds the buffer that recovery must hold.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// Up to this size, in bytes, batches that wait for the same sync are joined into one frame; larger frames would waste
/// too much at the end of a segment.
pub const FRAME_JOIN_BYTES: usize = 1 << 20;

/// Largest record, in bytes: larger things are payload.
pub const RECORD_BYTES_MAX: usize = 4 << 20;

/// Largest blob, in bytes. A blob above the size of a payload segment gets a segment of its own.
pub const BLOB_BYTES_MAX: usize = 1 << 30;

/// Bytes that may wait for the sync thread before ordinary records and blobs are refused as `Busy`: a quarter of a
/// second of a slow disk. Outcomes may use twice as much.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Size of the written reserve that only outcomes may use when the disk is full, in bytes: one log segment.
pub const RESERVE_BYTES: u64 = 16 << 20;

/// Pause in the work after which the reserve is written, a piece at a time: start-up and bursts come first.
pub const RESERVE_IDLE: Duration = Duration::from_millis(50);

/// Free space below which ordinary records are refused, in bytes: what can be in the queue when the check comes, and the
/// segments that it is written to.
pub const LOW_WATER_BYTES: u64 = 128 << 20;

/// Bytes written after which free space is looked up again, beside the look at each renewal. A smaller low water makes it
/// an eighth of that.
pub const SPACE_CHECK_BYTES: u64 = 8 << 20;

/// How long a taker on another host must see no renewal before it takes the folder. Above the pauses of a busy shared
/// file system, below the patience of a person.
pub const LEASE: Duration = Duration::from_secs(15);

/// How often the owner renews: several times in a lease, yet only a few operations a minute on the file system.
pub const RENEW_EVERY: Duration = Duration::from_secs(4);

/// Part of the lease, in percent, for which a verified renewal allows acknowledgements; the rest is margin for clocks
/// that run at different speeds and for the time between the look and the act.
pub const ACKNOWLEDGE_PERCENT: u32 = 66;

/// How often a taker looks at the owner's renewals.
pub const WATCH_EVERY: Duration = Duration::from_millis(200);

/// Largest owner file that is read, in bytes: ours has about 300.
pub const OWNER_BYTES_MAX: u64 = 4096;

/// Payload files that a reader holds open. Files above it are closed and opened again.
pub const OPEN_PAYLOAD_FILES_MAX: usize = 64;

/// Tries of a backup when segments are trimmed under its hands: a broker takes snapshots minutes apart, so the second try
/// does, but a disk that is slow to read may need a few.
pub const BACKUP_TRIES_MAX: u32 = 20;
