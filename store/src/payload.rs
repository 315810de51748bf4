//! Payload segments: where blobs are put, read back, and die with their jobs. `PayloadWriter` belongs to the store's
//! caller, `BlobReader` to anyone, `PayloadFiles` to the sync thread.
//!
//! A segment is 64 bytes of header, then blobs one behind the other: 16 bytes (length, CRC, job), then the caller's
//! bytes, then zeros if it was preallocated further. A `BlobRef` points at the bytes, so a part of a blob has a `BlobRef` too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pf_protocol::BlobRef;

use crate::chunk::Chunk;
use crate::error::{IoContext, StoreError};
use crate::folder;
use crate::limits::{BLOB_BYTES_MAX, OPEN_PAYLOAD_FILES_MAX, PAYLOAD_STEP_BYTES};
use crate::scan::read_up_to;
use crate::space::{self, Space, ZeroAhead};

const MAGIC: [u8; 8] = *b"PFSTPAY\n";
const FORMAT_VERSION: u32 = 1;
/// Where the first blob of a segment begins.
pub(crate) const PAYLOAD_HEADER_BYTES: u32 = 64;
/// Bytes before each blob.
pub(crate) const BLOB_HEADER_BYTES: u32 = 16;

/// Header of a payload segment.
pub(crate) fn payload_header(log_id: u64, segment: u32) -> [u8; PAYLOAD_HEADER_BYTES as usize] {
    let mut out = [0; PAYLOAD_HEADER_BYTES as usize];
    out[0..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&segment.to_le_bytes());
    out[16..24].copy_from_slice(&log_id.to_le_bytes());
    let crc = crc32fast::hash(&out[..60]);
    out[60..64].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Header of a blob: length, CRC over length, job and bytes, job.
pub(crate) fn blob_header(job: u64, bytes: &[u8]) -> [u8; BLOB_HEADER_BYTES as usize] {
    let mut out = [0; BLOB_HEADER_BYTES as usize];
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out[0..4].copy_from_slice(&len.to_le_bytes());
    out[8..16].copy_from_slice(&job.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&out);
    hasher.update(bytes);
    out[4..8].copy_from_slice(&hasher.finalize().to_le_bytes());
    out
}

#[derive(Debug, Default)]
struct Pending {
    /// Handed to the sync thread.
    flushed: VecDeque<Arc<Chunk>>,
    /// Being filled.
    open: Chunk,
}

/// What writer, readers and sync thread share.
#[derive(Debug)]
pub(crate) struct PayloadShared {
    dir: PathBuf,
    pending: Mutex<Pending>,
    /// `segment << 32 | end` of what the files hold: below it no lock is needed.
    written: AtomicU64,
    files: Mutex<BTreeMap<u32, Arc<File>>>,
}

fn mark(segment: u32, offset: u64) -> u64 {
    (u64::from(segment) << 32) + offset
}

impl PayloadShared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, segment: u32) -> Result<Arc<File>, StoreError> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&segment) {
            return Ok(Arc::clone(file));
        }
        let path = folder::payload_path(&self.dir, segment);
        let file = Arc::new(File::open(&path).on("open", &path)?);
        while files.len() >= OPEN_PAYLOAD_FILES_MAX {
            files.pop_first();
        }
        files.insert(segment, Arc::clone(&file));
        Ok(file)
    }
}

/// Reads blobs. Cheap to clone; may be used from any thread, also while blobs are being put.
#[derive(Clone, Debug)]
pub struct BlobReader {
    shared: Arc<PayloadShared>,
}

impl BlobReader {
    /// The bytes of a blob, or of a part of one: any `BlobRef` whose range lies within a blob that was put. Blobs can be
    /// read at once, also before they are synced. Reads the disk: not for a thread that must not wait.
    ///
    /// # Errors
    /// `Blob` when the range is not there, `Io` when the segment is gone or cannot be read.
    pub fn read(&self, blob: BlobRef) -> Result<Vec<u8>, StoreError> {
        if mark(blob.segment, u64::from(blob.offset) + u64::from(blob.len))
            > self.shared.written.load(Ordering::Acquire)
        {
            let pending = self.shared.pending();
            let chunks = pending.flushed.iter().map(Arc::as_ref).chain([&pending.open]);
            if let Some(bytes) = chunks.filter_map(|chunk| chunk.slice(blob)).next() {
                return Ok(bytes.to_vec());
            }
        }
        let file = self.shared.file(blob.segment)?;
        let path = folder::payload_path(&self.shared.dir, blob.segment);
        let size = file.metadata().on("read", &path)?.len();
        if u64::from(blob.offset) + u64::from(blob.len) > size {
            return Err(bad(blob, "it lies beyond the end of the segment"));
        }
        let mut bytes = vec![0; blob.len as usize];
        file.read_exact_at(&mut bytes, u64::from(blob.offset)).on("read", &path)?;
        Ok(bytes)
    }

    /// Like [`read`](Self::read), for a whole blob, and checks it against its checksum.
    ///
    /// # Errors
    /// As `read`; `Blob` also when the checksum does not match, which is so for a part of a blob.
    pub fn read_checked(&self, blob: BlobRef) -> Result<Vec<u8>, StoreError> {
        let with_header = blob
            .offset
            .checked_sub(BLOB_HEADER_BYTES)
            .zip(blob.len.checked_add(BLOB_HEADER_BYTES))
            .map(|(offset, len)| BlobRef { segment: blob.segment, offset, len })
            .ok_or_else(|| bad(blob, "no blob can begin there"))?;
        let mut bytes = self.read(with_header)?;
        let head: Vec<u8> = bytes.drain(..BLOB_HEADER_BYTES as usize).collect();
        let mut job = [0; 8];
        job.copy_from_slice(&head[8..16]);
        if head != blob_header(u64::from_le_bytes(job), &bytes) {
            return Err(bad(blob, "it does not match its checksum"));
        }
        Ok(bytes)
    }
}

fn bad(blob: BlobRef, reason: &str) -> StoreError {
    StoreError::Blob { segment: blob.segment, offset: blob.offset, reason: reason.to_string() }
}

/// Puts blobs, and knows which jobs keep which segment alive.
pub(crate) struct PayloadWriter {
    shared: Arc<PayloadShared>,
    segment_bytes: u32,
    /// Jobs with blobs, by segment. Segments of before the restart have an entry from the start.
    jobs: BTreeMap<u32, BTreeSet<u64>>,
    last: Option<(u32, u64)>,
    /// Chunks that the sync thread has not been given.
    ready: Vec<Arc<Chunk>>,
    /// Bytes put since the sync thread was last given some.
    unflushed_bytes: usize,
    /// Segments to remove once what was appended so far is synced.
    dead: Vec<u32>,
}

impl PayloadWriter {
    /// `existing`: the segments on disk; `named`: the highest that the log names. A new one is begun behind all of them.
    pub fn new(dir: PathBuf, segment_bytes: u32, existing: &[u32], named: u32) -> Self {
        let next = existing.iter().fold(named, |most, segment| most.max(*segment)).saturating_add(1);
        let open = Chunk { segment: next, offset: PAYLOAD_HEADER_BYTES, bytes: Vec::new() };
        let shared = PayloadShared {
            dir,
            pending: Mutex::new(Pending { flushed: VecDeque::new(), open }),
            written: AtomicU64::new(mark(next, 0)),
            files: Mutex::new(BTreeMap::new()),
        };
        let jobs = existing.iter().map(|segment| (*segment, BTreeSet::new())).collect();
        Self {
            shared: Arc::new(shared),
            segment_bytes,
            jobs,
            last: None,
            ready: Vec::new(),
            unflushed_bytes: 0,
            dead: Vec::new(),
        }
    }

    pub fn shared(&self) -> Arc<PayloadShared> {
        Arc::clone(&self.shared)
    }

    pub fn reader(&self) -> BlobReader {
        BlobReader { shared: self.shared() }
    }

    pub fn put(&mut self, job: u64, bytes: &[u8]) -> Result<BlobRef, StoreError> {
        let len = bytes.len();
        let too_large = StoreError::TooLarge { what: "blob", len, max: BLOB_BYTES_MAX };
        let Some(size) = u32::try_from(len).ok().filter(|_| len <= BLOB_BYTES_MAX) else {
            return Err(too_large);
        };
        let mut pending = self.shared.pending();
        let end = pending.open.end();
        let begun = end > u64::from(PAYLOAD_HEADER_BYTES);
        if begun && end + u64::from(BLOB_HEADER_BYTES) + u64::from(size) > u64::from(self.segment_bytes) {
            let full = pending.open.segment;
            let next = Chunk { segment: full + 1, offset: PAYLOAD_HEADER_BYTES, bytes: Vec::new() };
            let chunk = std::mem::replace(&mut pending.open, next);
            hand_over(&mut pending, &mut self.ready, chunk);
            if self.jobs.get(&full).is_some_and(BTreeSet::is_empty) {
                self.jobs.remove(&full);
                self.dead.push(full);
            }
        }
        let open = &mut pending.open;
        let segment = open.segment;
        // Fits: a segment is at most 4 GiB (its size is a u32), a lonely blob at most BLOB_BYTES_MAX.
        let offset = u32::try_from(open.end()).unwrap_or(u32::MAX) + BLOB_HEADER_BYTES;
        open.bytes.extend_from_slice(&blob_header(job, bytes));
        open.bytes.extend_from_slice(bytes);
        drop(pending);
        self.unflushed_bytes += len + BLOB_HEADER_BYTES as usize;
        if self.last != Some((segment, job)) {
            self.jobs.entry(segment).or_default().insert(job);
            self.last = Some((segment, job));
        }
        Ok(BlobRef { segment, offset, len: size })
    }

    /// Chunks to be written now, oldest first; each is given once.
    pub fn take_ready(&mut self) -> Vec<Arc<Chunk>> {
        if self.unflushed_bytes == 0 {
            return Vec::new();
        }
        self.unflushed_bytes = 0;
        let mut pending = self.shared.pending();
        let end = u32::try_from(pending.open.end()).unwrap_or(u32::MAX);
        let next = Chunk { segment: pending.open.segment, offset: end, bytes: Vec::new() };
        let chunk = std::mem::replace(&mut pending.open, next);
        hand_over(&mut pending, &mut self.ready, chunk);
        std::mem::take(&mut self.ready)
    }

    /// Bytes put that the sync thread has not been given.
    pub fn unflushed_bytes(&self) -> usize {
        self.unflushed_bytes
    }

    pub fn live(&mut self, job: u64, segment: u32) {
        if let Some(jobs) = self.jobs.get_mut(&segment) {
            jobs.insert(job);
        }
    }

    /// Gives up the segments in which no job has blobs.
    pub fn sweep(&mut self) -> usize {
        let open = self.shared.pending().open.segment;
        let empty = |(segment, jobs): (&u32, &BTreeSet<u64>)| {
            (jobs.is_empty() && *segment != open).then_some(*segment)
        };
        let dead: Vec<u32> = self.jobs.iter().filter_map(empty).collect();
        for segment in &dead {
            self.jobs.remove(segment);
        }
        self.dead.extend(&dead);
        dead.len()
    }

    pub fn drop_job(&mut self, job: u64) {
        let open = self.shared.pending().open.segment;
        if self.last.is_some_and(|(_, last)| last == job) {
            self.last = None;
        }
        let dead = &mut self.dead;
        self.jobs.retain(|segment, jobs| {
            let keep = !jobs.remove(&job) || !jobs.is_empty() || *segment == open;
            if !keep {
                dead.push(*segment);
            }
            keep
        });
    }

    pub fn take_dead(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.dead)
    }
}

fn hand_over(pending: &mut Pending, ready: &mut Vec<Arc<Chunk>>, chunk: Chunk) {
    if !chunk.bytes.is_empty() {
        let chunk = Arc::new(chunk);
        pending.flushed.push_back(Arc::clone(&chunk));
        ready.push(chunk);
    }
}

/// The sync thread's side: writes chunks, syncs, removes.
pub(crate) struct PayloadFiles {
    shared: Arc<PayloadShared>,
    log_id: u64,
    open: Option<OpenPayload>,
}

struct OpenPayload {
    segment: u32,
    path: PathBuf,
    file: File,
    allocated: u64,
    /// Where the meaningful bytes end.
    end: u64,
    ahead: ZeroAhead,
    dirty: bool,
}

impl PayloadFiles {
    pub fn new(shared: Arc<PayloadShared>, log_id: u64) -> Self {
        Self { shared, log_id, open: None }
    }

    /// Writes a chunk. Not synced yet, but a segment that it ends is.
    pub fn write(&mut self, chunk: &Arc<Chunk>, space: &mut Space) -> Result<(), StoreError> {
        if self.open.as_ref().is_none_or(|open| open.segment != chunk.segment) {
            self.sync()?;
            self.shorten();
            self.open = Some(create(&self.shared.dir, self.log_id, chunk.segment, space)?);
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        open.reach(chunk.end(), space)?;
        loop {
            match open.file.write_all_at(&chunk.bytes, u64::from(chunk.offset)).on("write", &open.path) {
                // Nothing of this chunk was synced, so writing it again is safe.
                Err(error) if error.is_out_of_space() && space.out_of_space()? => {}
                other => break other?,
            }
        }
        open.dirty = true;
        open.end = chunk.end();
        let end = mark(chunk.segment, chunk.end());
        self.shared.written.store(end, Ordering::Release);
        self.shared.pending().flushed.retain(|flushed| !Arc::ptr_eq(flushed, chunk));
        Ok(())
    }

    /// Syncs what was written.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        if let Some(open) = &mut self.open
            && open.dirty
        {
            open.file.sync_data().on("sync", &open.path)?;
            open.dirty = false;
        }
        Ok(())
    }

    /// Whether an idle moment should go into `write_zeros`.
    pub fn wants_zeros(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.ahead.wants(open.end, open.allocated))
    }

    /// Prepares blocks for the next blobs.
    pub fn write_zeros(&mut self) -> Result<(), StoreError> {
        match &mut self.open {
            Some(open) => open.ahead.step(&open.file, open.end, open.allocated).on("write", &open.path),
            None => Ok(()),
        }
    }

    /// Gives the unused rest of the current segment back.
    pub fn shorten(&self) {
        if let Some(open) = &self.open {
            space::shorten(&open.file, &open.path, open.end);
        }
    }

    /// Removes a segment.
    pub fn remove(&mut self, segment: u32) -> Result<(), StoreError> {
        self.shared.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&segment);
        folder::remove(&folder::payload_path(&self.shared.dir, segment))
    }
}

impl OpenPayload {
    /// Allocates ahead, so that a full disk is noticed here; on a full disk only what is needed.
    fn reach(&mut self, end: u64, space: &mut Space) -> Result<(), StoreError> {
        while self.allocated < end {
            let ahead = if space.is_full() { 0 } else { PAYLOAD_STEP_BYTES };
            let len = ahead.max(end - self.allocated);
            match space::allocate(&self.file, self.allocated, len, false).on("allocate", &self.path) {
                Ok(()) => self.allocated += len,
                Err(error) if error.is_out_of_space() => {
                    // Without a reserve to give back, and with nothing to leave out, the write will tell.
                    if !space.out_of_space()? && ahead == 0 {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn create(dir: &Path, log_id: u64, segment: u32, space: &mut Space) -> Result<OpenPayload, StoreError> {
    let path = folder::payload_path(dir, segment);
    loop {
        match create_file(&path, &payload_header(log_id, segment)) {
            Ok(file) => {
                folder::sync_dir(dir)?;
                let end = u64::from(PAYLOAD_HEADER_BYTES);
                let ahead = ZeroAhead::default();
                return Ok(OpenPayload { segment, path, file, allocated: 0, end, ahead, dirty: false });
            }
            Err(error) if error.is_out_of_space() && space.out_of_space()? => folder::remove(&path)?,
            Err(error) => return Err(error),
        }
    }
}

fn create_file(path: &Path, header: &[u8]) -> Result<File, StoreError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).on("create", path)?;
    file.write_all_at(header, 0).on("write", path)?;
    file.sync_data().on("sync", path)?;
    Ok(file)
}

/// Offset of the first blob that is not sound, and what is wrong with it.
pub(crate) type Torn = (u64, &'static str);

/// Walks the blobs of a payload segment up to its end or the first bad one: how many are sound, and where and why it
/// ended early. Used by `check`.
pub(crate) fn check_segment(
    dir: &Path,
    log_id: u64,
    segment: u32,
) -> Result<(u64, Option<Torn>), StoreError> {
    let path = folder::payload_path(dir, segment);
    let file = File::open(&path).on("open", &path)?;
    let size = file.metadata().on("read", &path)?.len();
    let mut head = [0; PAYLOAD_HEADER_BYTES as usize];
    let got = read_up_to(&file, &mut head, 0).on("read", &path)?;
    if got < head.len() || head != payload_header(log_id, segment) {
        return Ok((0, Some((0, "its header is not sound or of another log"))));
    }
    let mut at = u64::from(PAYLOAD_HEADER_BYTES);
    let mut blobs = 0;
    while at < size {
        let mut head = [0; BLOB_HEADER_BYTES as usize];
        let got = read_up_to(&file, &mut head, at).on("read", &path)?;
        if head == [0; BLOB_HEADER_BYTES as usize] {
            // Preallocated: a header is never all zeros, since its CRC is not.
            break;
        }
        if got < head.len() {
            return Ok((blobs, Some((at, "the file ends within a blob"))));
        }
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let start = at + u64::from(BLOB_HEADER_BYTES);
        if len as usize > BLOB_BYTES_MAX || start + u64::from(len) > size {
            return Ok((blobs, Some((at, "the file ends within a blob"))));
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, start).on("read", &path)?;
        let job = u64::from_le_bytes([
            head[8], head[9], head[10], head[11], head[12], head[13], head[14], head[15],
        ]);
        if head != blob_header(job, &bytes) {
            return Ok((blobs, Some((at, "a blob does not match its checksum"))));
        }
        blobs += 1;
        at = start + u64::from(len);
    }
    Ok((blobs, None))
}
