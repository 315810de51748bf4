//! What is kept of ended tasks: 20 bytes a row, 4 to find it by position, and a chunk for each batch. Part of [`crate::job::Job`].

use pf_protocol::outcome::{OutcomeKind, Ran};
use pf_protocol::payload::held;
use pf_protocol::{BlobRef, Ranges};
use serde::{Deserialize, Serialize};

/// Positions, or rows, in one page of memory: nothing is copied when a job grows, nothing is held for what has not ended.
const PAGE: usize = 4_096;

/// One ended task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Row {
    /// Position.
    pub index: u32,
    /// Held at the manager, microseconds, saturated.
    pub held_us: u32,
    /// Ran, microseconds, saturated.
    pub ran_us: u32,
    /// Length of its value, marked if it is only named.
    pub value_len: u32,
    /// How it ended.
    pub kind: OutcomeKind,
    /// Whether it possibly ran.
    pub ran: Ran,
}

impl Row {
    /// Bytes of a packed row.
    pub const BYTES: usize = 18;

    /// Appends its packed form.
    pub fn pack(&self, out: &mut Vec<u8>) {
        let mut packed = [0u8; Row::BYTES];
        packed[..4].copy_from_slice(&self.index.to_le_bytes());
        packed[4..8].copy_from_slice(&self.held_us.to_le_bytes());
        packed[8..12].copy_from_slice(&self.ran_us.to_le_bytes());
        packed[12..16].copy_from_slice(&self.value_len.to_le_bytes());
        packed[16] = self.kind as u8;
        packed[17] = self.ran as u8;
        out.extend_from_slice(&packed);
    }

    /// All rows of a block of packed ones; None if it is cut, or of a kind that is not known.
    #[must_use]
    pub fn unpack_all(bytes: &[u8]) -> Option<Vec<Row>> {
        let rows = bytes.chunks_exact(Row::BYTES);
        if !rows.remainder().is_empty() {
            return None;
        }
        let number = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        rows.map(|b| {
            Some(Row {
                index: number(b),
                held_us: number(&b[4..]),
                ran_us: number(&b[8..]),
                value_len: number(&b[12..]),
                kind: OutcomeKind::ALL.get(usize::from(b[16])).copied()?,
                ran: Ran::ALL.get(usize::from(b[17])).copied()?,
            })
        })
        .collect()
    }
}

/// Rows that were recorded together: one node, one stored blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Number of its first row in the job.
    pub first_row: u32,
    /// Node on which they ran: index in the table of names, 0 is none.
    pub node: u32,
    /// Number of its first outcome among all outcomes of the broker.
    pub first_seq: u64,
    /// Values, then details.
    pub blob: BlobRef,
    /// Bytes of the values.
    pub values_len: u32,
}

impl Chunk {
    /// A part of its blob that holds values.
    #[must_use]
    pub fn value(&self, offset: u32, len: u32) -> BlobRef {
        BlobRef { offset: self.blob.offset + offset, len, ..self.blob }
    }

    /// The part of its blob that holds the details, if there are any.
    #[must_use]
    pub fn details(&self) -> Option<BlobRef> {
        let len = self.blob.len - self.values_len.min(self.blob.len);
        (len > 0).then(|| BlobRef { offset: self.blob.offset + self.values_len, len, ..self.blob })
    }
}

/// The ended tasks of a job.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ended {
    /// By position: 1 + number of its row, 0 for "not ended".
    index: Vec<Option<Box<[u32; PAGE]>>>,
    rows: Vec<Vec<Row>>,
    chunks: Vec<Chunk>,
    count: u32,
}

impl Ended {
    /// How many have ended.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether the task at `position` has ended.
    #[must_use]
    pub fn contains(&self, position: u32) -> bool {
        self.row_number(position).is_some()
    }

    /// Number of the row of `position`.
    #[must_use]
    pub fn row_number(&self, position: u32) -> Option<u32> {
        let page = self.index.get(position as usize / PAGE)?.as_ref()?;
        page[position as usize % PAGE].checked_sub(1)
    }

    /// A row by its number.
    #[must_use]
    pub fn row(&self, number: u32) -> Option<Row> {
        self.rows.get(number as usize / PAGE)?.get(number as usize % PAGE).copied()
    }

    /// Rows from number `from` on.
    pub fn rows_from(&self, from: u32) -> impl Iterator<Item = Row> + '_ {
        let (page, at) = (from as usize / PAGE, from as usize % PAGE);
        let first = self.rows.get(page).and_then(|rows| rows.get(at..)).unwrap_or_default();
        first.iter().chain(self.rows.iter().skip(page + 1).flatten()).copied()
    }

    /// The chunks, in the order of their rows.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Rows of the chunk with this number.
    #[must_use]
    pub fn chunk_rows(&self, chunk: usize) -> std::ops::Range<u32> {
        let first = |at: usize| self.chunks.get(at).map_or(self.count, |c| c.first_row);
        first(chunk)..first(chunk + 1)
    }

    /// The chunk of a row, with the offset of the row's value in its blob.
    #[must_use]
    pub fn chunk_of(&self, row: u32) -> Option<(Chunk, u32)> {
        let after = self.chunks.partition_point(|c| c.first_row <= row);
        let chunk = *self.chunks.get(after.checked_sub(1)?)?;
        let before = self.rows_from(chunk.first_row).take((row - chunk.first_row) as usize);
        Some((chunk, before.map(|r| held(r.value_len) as u32).sum()))
    }

    /// Adds a chunk with its rows, whose `first_row` is filled in. The caller has seen to it that none of them has ended before.
    pub fn push(&mut self, mut chunk: Chunk, rows: &[Row]) {
        chunk.first_row = self.count;
        self.chunks.push(chunk);
        for row in rows {
            self.push_row(*row);
        }
    }

    fn push_row(&mut self, row: Row) {
        let page = row.index as usize / PAGE;
        if page >= self.index.len() {
            self.index.resize_with(page + 1, || None);
        }
        let page = self.index[page].get_or_insert_with(|| Box::new([0; PAGE]));
        self.count += 1;
        page[row.index as usize % PAGE] = self.count;
        if self.rows.last().is_none_or(|rows| rows.len() == PAGE) {
            self.rows.push(Vec::new());
        }
        if let Some(rows) = self.rows.last_mut() {
            rows.push(row);
        }
    }

    /// Positions below `total` that have not ended.
    #[must_use]
    pub fn missing(&self, total: u32) -> Ranges {
        let mut out = Ranges::new();
        let mut at = 0u32;
        while at < total {
            let here = (PAGE as u32).min(total - at);
            match self.index.get(at as usize / PAGE).and_then(Option::as_ref) {
                None => out.insert_range(at, here),
                Some(page) => {
                    let open = page[..here as usize].iter().zip(at..).filter(|(row, _)| **row == 0);
                    open.for_each(|(_, position)| out.insert(position));
                }
            }
            at += here;
        }
        out
    }
}

/// The form in a snapshot: rows packed, the index made anew.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(with = "serde_bytes")]
    rows: Vec<u8>,
    chunks: Vec<Chunk>,
}

impl Serialize for Ended {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut rows = Vec::with_capacity(self.count as usize * Row::BYTES);
        self.rows_from(0).for_each(|row| row.pack(&mut rows));
        Stored { rows, chunks: self.chunks.clone() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Ended {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stored = Stored::deserialize(deserializer)?;
        let rows = Row::unpack_all(&stored.rows)
            .ok_or_else(|| serde::de::Error::custom("rows of ended tasks are cut"))?;
        let mut ended = Ended { chunks: stored.chunks, ..Ended::default() };
        rows.into_iter().for_each(|row| ended.push_row(row));
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(index: u32, value_len: u32) -> Row {
        Row { index, value_len, kind: OutcomeKind::Exit, ran: Ran::Unknown, held_us: 1, ran_us: u32::MAX }
    }

    fn chunk() -> Chunk {
        let blob = BlobRef { segment: 1, offset: 100, len: 20 };
        Chunk { first_row: 0, node: 1, first_seq: 1, blob, values_len: 15 }
    }

    #[test]
    fn rows_are_found_by_position_and_their_values_in_the_chunk() {
        let mut ended = Ended::default();
        ended.push(chunk(), &[row(9_000, 1), row(3, 2)]);
        ended.push(chunk(), &[row(4, 7), row(5, 8)]);
        assert_eq!(ended.row_number(5), Some(3));
        assert_eq!(ended.row_number(6), None);
        let (found, offset) = ended.chunk_of(3).unwrap();
        assert_eq!((found.first_row, offset), (2, 7));
        assert_eq!(found.details(), Some(BlobRef { segment: 1, offset: 115, len: 5 }));
        assert_eq!(ended.missing(9_002).pairs(), &[(0, 3), (6, 8_994), (9_001, 1)]);
        assert_eq!(ended.chunk_rows(1), 2..4);
    }

    #[test]
    fn a_snapshot_reads_what_it_writes() {
        let mut ended = Ended::default();
        for at in 0..3 {
            let rows: Vec<Row> = (0..3_000).map(|i| row(at * 3_000 + i, 0)).collect();
            ended.push(chunk(), &rows);
        }
        let bytes = rmp_serde::to_vec_named(&ended).unwrap();
        assert_eq!(rmp_serde::from_slice::<Ended>(&bytes).unwrap(), ended);
        assert_eq!(ended.rows_from(4_090).count(), 9_000 - 4_090);
    }

    #[test]
    fn cut_rows_are_refused() {
        let mut bytes = Vec::new();
        row(1, 2).pack(&mut bytes);
        assert_eq!(Row::unpack_all(&bytes), Some(vec![row(1, 2)]));
        assert_eq!(Row::unpack_all(&bytes[1..]), None);
        bytes[16] = 200;
        assert_eq!(Row::unpack_all(&bytes), None);
    }
}
