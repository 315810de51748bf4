//! Items of tasks: cut into pieces when they come, kept in memory while they are fresh, loaded piece by piece when they are not.

use crate::io::{Blobs, Class, PutError};
use crate::limits::{ITEM_CACHE_BYTES_MAX, ITEM_CACHE_OVERHEAD_BYTES, PIECE_BYTES_MAX};
use crate::record::Piece;
use crate::requests::{Code, Refusal, Tasks};
use bytes::Bytes;
use pf_protocol::limits::BATCH_TASKS_MAX;
use pf_protocol::payload::held;
use pf_protocol::{JobId, Ranges};
use std::collections::{BTreeMap, VecDeque};

/// A piece in memory.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    /// `[len u32 LE × count][items]`, as it is stored.
    bytes: Bytes,
    /// Where each item ends in `bytes`; the first begins behind the lengths.
    ends: Vec<u32>,
}

impl Loaded {
    /// Reads a stored piece; None when lengths and bytes do not agree.
    pub fn read(bytes: Bytes, count: u32) -> Option<Loaded> {
        let begin = count as usize * 4;
        let mut at = begin as u64;
        let lens = bytes.get(..begin)?.chunks_exact(4);
        let ends: Vec<u32> = lens
            .map(|len| {
                at += held(u32::from_le_bytes([len[0], len[1], len[2], len[3]])) as u64;
                u32::try_from(at).ok()
            })
            .collect::<Option<_>>()?;
        (at == bytes.len() as u64).then_some(Loaded { bytes, ends })
    }

    fn start(&self, nth: usize) -> usize {
        nth.checked_sub(1).map_or(self.ends.len() * 4, |before| self.ends[before] as usize)
    }

    /// Length of one item, as it was told: with its mark if it is only named.
    pub fn len(&self, nth: u32) -> u32 {
        let at = nth as usize * 4;
        let bytes = self.bytes.get(at..at + 4).filter(|_| (nth as usize) < self.ends.len());
        bytes.map_or(0, |len| u32::from_le_bytes([len[0], len[1], len[2], len[3]]))
    }

    /// `count` items from number `nth` on, one after another.
    pub fn items(&self, nth: u32, count: u32) -> Bytes {
        let (first, behind) = (nth as usize, (nth + count) as usize);
        if count == 0 || behind > self.ends.len() {
            return Bytes::new();
        }
        self.bytes.slice(self.start(first)..self.ends[behind - 1] as usize)
    }

    fn cost(&self) -> usize {
        self.bytes.len() + self.ends.len() * 4 + ITEM_CACHE_OVERHEAD_BYTES
    }
}

/// Pieces in memory, bounded.
#[derive(Debug, Default)]
pub(crate) struct ItemCache {
    pieces: BTreeMap<(JobId, u32), Loaded>,
    order: VecDeque<(JobId, u32)>,
    bytes: usize,
}

impl ItemCache {
    /// The piece that begins at position `first` of `job`.
    pub fn get(&self, job: JobId, first: u32) -> Option<&Loaded> {
        self.pieces.get(&(job, first))
    }

    /// Keeps a fresh piece if there is room: what comes first is needed first.
    pub fn offer(&mut self, job: JobId, first: u32, piece: Loaded) {
        if self.bytes + piece.cost() <= ITEM_CACHE_BYTES_MAX {
            self.insert(job, first, piece);
        }
    }

    /// Keeps a piece that was asked for; older ones make room.
    pub fn insert(&mut self, job: JobId, first: u32, piece: Loaded) {
        self.bytes += piece.cost();
        self.order.push_back((job, first));
        if let Some(before) = self.pieces.insert((job, first), piece) {
            self.bytes -= before.cost();
        }
        while self.bytes > ITEM_CACHE_BYTES_MAX && self.order.len() > 1 {
            if let Some((job, first)) = self.order.pop_front() {
                self.remove(job, first);
            }
        }
    }

    /// The piece is not needed any more.
    pub fn remove(&mut self, job: JobId, first: u32) {
        if let Some(piece) = self.pieces.remove(&(job, first)) {
            self.bytes -= piece.cost();
        }
        if self.order.len() > 2 * self.pieces.len() + 64 {
            self.order.retain(|key| self.pieces.contains_key(key));
        }
    }

    /// Nothing of the job is needed any more.
    pub fn remove_job(&mut self, job: JobId) {
        let range = (job, 0)..=(job, u32::MAX);
        let firsts: Vec<u32> = self.pieces.range(range).map(|(key, _)| key.1).collect();
        firsts.into_iter().for_each(|first| self.remove(job, first));
    }
}

/// Puts the items of new tasks, whose first has position `first`, as pieces, and offers them to the cache. No pieces when no task has an item.
/// `tasks` has been validated.
///
/// # Errors
/// When the store cannot take them; pieces put before are garbage of the job, dropped with it.
pub(crate) fn put_items(
    job: JobId,
    first: u32,
    tasks: &Tasks,
    cache: &mut ItemCache,
    blobs: &mut dyn Blobs,
) -> Result<Vec<Piece>, PutError> {
    let mut pieces = Vec::new();
    let (mut at, mut offset) = (0usize, 0usize);
    while at < tasks.lens.len() {
        let mut bytes = 0usize;
        let lens = tasks.lens[at..].iter().take(BATCH_TASKS_MAX).take_while(|len| {
            let fits = bytes == 0 || bytes + held(**len) <= PIECE_BYTES_MAX;
            bytes += if fits { held(**len) } else { 0 };
            fits
        });
        let count = lens.count();
        let mut stored = Vec::with_capacity(count * 4 + bytes);
        tasks.lens[at..at + count].iter().for_each(|len| stored.extend_from_slice(&len.to_le_bytes()));
        stored.extend_from_slice(tasks.blob.get(offset..offset + bytes).unwrap_or_default());
        let blob = blobs.put(job, Class::Ordinary, &stored)?;
        let piece = Piece { first: first + at as u32, count: count as u32, blob };
        if let Some(loaded) = Loaded::read(Bytes::from(stored), piece.count) {
            cache.offer(job, piece.first, loaded);
        }
        pieces.push(piece);
        at += count;
        offset += bytes;
    }
    Ok(pieces)
}

/// The items of `tasks` out of the pieces that hold them, in order.
pub(crate) fn failed_items(
    tasks: &Ranges,
    pieces: &[Piece],
    result: Result<Vec<Bytes>, String>,
) -> Result<Tasks, Refusal> {
    let unreadable =
        |why: String| Refusal::new(Code::Unreadable, format!("the job's items could not be read: {why}"));
    let blobs = result.map_err(unreadable)?;
    let count = tasks.len() as u32;
    if pieces.is_empty() {
        return Ok(Tasks { count, ..Tasks::default() });
    }
    let mut lens = Vec::with_capacity(count as usize);
    let mut blob = Vec::new();
    let mut loaded = Vec::with_capacity(pieces.len());
    for (piece, bytes) in pieces.iter().zip(blobs) {
        let read = Loaded::read(bytes, piece.count);
        loaded.push(read.ok_or_else(|| unreadable("lengths and bytes do not agree".into()))?);
    }
    for index in tasks.iter() {
        let at = pieces.partition_point(|p| p.first <= index).checked_sub(1);
        let found = at.and_then(|at| Some((pieces.get(at)?, loaded.get(at)?)));
        match found.filter(|(piece, _)| index - piece.first < piece.count) {
            Some((piece, loaded)) => {
                lens.push(loaded.len(index - piece.first));
                blob.extend_from_slice(&loaded.items(index - piece.first, 1));
            }
            None => lens.push(0),
        }
    }
    Ok(Tasks { count, lens, blob: Bytes::from(blob) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pf_protocol::BlobRef;

    struct Kept(Vec<Vec<u8>>);
    impl Blobs for Kept {
        fn put(&mut self, _: JobId, _: Class, bytes: &[u8]) -> Result<BlobRef, PutError> {
            self.0.push(bytes.to_vec());
            Ok(BlobRef { segment: 1, offset: self.0.len() as u32, len: bytes.len() as u32 })
        }

        fn keep(&mut self, _: JobId, _: BlobRef) {}
    }

    #[test]
    fn items_are_cut_by_count_and_bytes_and_read_back() {
        let lens: Vec<u32> = (0..10_000u32).map(|i| if i == 5_000 { 3 << 20 } else { i % 3 }).collect();
        let blob: Vec<u8> = (0..lens.iter().sum::<u32>()).map(|i| i as u8).collect();
        let tasks = Tasks { count: 10_000, lens: lens.clone(), blob: Bytes::from(blob.clone()) };
        let (mut cache, mut kept) = (ItemCache::default(), Kept(Vec::new()));
        let pieces = put_items(JobId(1), 100, &tasks, &mut cache, &mut kept).unwrap();
        assert_eq!(pieces.iter().map(|p| p.count).sum::<u32>(), 10_000);
        assert_eq!(pieces[1].first, 100 + BATCH_TASKS_MAX as u32);
        assert!(pieces.len() >= 4);
        let mut all = Vec::new();
        for (piece, bytes) in pieces.iter().zip(&kept.0) {
            let loaded = Loaded::read(Bytes::from(bytes.clone()), piece.count).unwrap();
            for nth in 0..piece.count {
                assert_eq!(loaded.len(nth), lens[(piece.first - 100 + nth) as usize]);
            }
            all.extend_from_slice(&loaded.items(0, piece.count));
        }
        assert_eq!(all, blob);
        assert!(cache.get(JobId(1), 100).is_some());
        cache.remove_job(JobId(1));
        assert_eq!(cache.bytes, 0);
    }

    #[test]
    fn a_piece_that_does_not_add_up_is_refused() {
        assert!(Loaded::read(Bytes::from_static(&[1, 0, 0, 0]), 1).is_none());
        assert!(Loaded::read(Bytes::from_static(&[1, 0]), 1).is_none());
    }

    #[test]
    fn the_cache_has_a_bound() {
        let mut cache = ItemCache::default();
        for first in 0..100 {
            let loaded = Loaded::read(Bytes::from(vec![0; 1 << 20]), 0);
            assert!(loaded.is_none());
            let mut bytes = ((1u32 << 20) - 4).to_le_bytes().to_vec();
            bytes.resize(1 << 20, 0);
            cache.insert(JobId(1), first, Loaded::read(Bytes::from(bytes), 1).unwrap());
        }
        assert!(cache.bytes <= ITEM_CACHE_BYTES_MAX);
        assert!(cache.get(JobId(1), 99).is_some() && cache.get(JobId(1), 0).is_none());
    }
}
