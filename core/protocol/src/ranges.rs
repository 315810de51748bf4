//! Sets of task positions as sorted, disjoint, non-adjacent ranges: a million queued tasks are one pair of numbers.

use serde::{Deserialize, Serialize};

/// A set of `u32` held as sorted `(first, count)` pairs. Encoded as the plain list of pairs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Ranges(Vec<(u32, u32)>);

impl<'de> Deserialize<'de> for Ranges {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let pairs = Vec::<(u32, u32)>::deserialize(d)?;
        let mut end = 0u64;
        for (i, &(first, count)) in pairs.iter().enumerate() {
            let start = u64::from(first);
            if count == 0 || (i > 0 && start <= end) || start + u64::from(count) > 1 << 32 {
                return Err(serde::de::Error::custom("ranges must be sorted, disjoint and not empty"));
            }
            end = start + u64::from(count);
        }
        Ok(Ranges(pairs))
    }
}

impl Ranges {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The set `{first, .., first + count - 1}`.
    #[must_use]
    pub fn from_range(first: u32, count: u32) -> Self {
        if count == 0 { Self::new() } else { Ranges(vec![(first, count)]) }
    }

    /// How many numbers are in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.iter().map(|r| u64::from(r.1)).sum()
    }

    /// Whether nothing is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The `(first, count)` pairs in order.
    #[must_use]
    pub fn pairs(&self) -> &[(u32, u32)] {
        &self.0
    }

    /// Each number in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().flat_map(|&(first, count)| (0..count).map(move |i| first + i))
    }

    /// The smallest number.
    #[must_use]
    pub fn first(&self) -> Option<u32> {
        self.0.first().map(|r| r.0)
    }

    /// Whether `n` is in the set. O(log pairs).
    #[must_use]
    pub fn contains(&self, n: u32) -> bool {
        let after = self.0.partition_point(|r| r.0 <= n);
        after > 0 && n - self.0[after - 1].0 < self.0[after - 1].1
    }

    /// Adds one number.
    pub fn insert(&mut self, n: u32) {
        self.insert_range(n, 1);
    }

    /// Adds `{first, .., first + count - 1}`; what was there stays. Appending at the end is O(1).
    pub fn insert_range(&mut self, first: u32, count: u32) {
        if count == 0 {
            return;
        }
        let (start, end) = (u64::from(first), u64::from(first) + u64::from(count));
        // All pairs that touch [start, end] are merged with it.
        let low = self.0.partition_point(|r| u64::from(r.0) + u64::from(r.1) < start);
        let high = low + self.0[low..].partition_point(|r| u64::from(r.0) <= end);
        let (mut new_start, mut new_end) = (start, end);
        if low < high {
            new_start = new_start.min(u64::from(self.0[low].0));
            new_end = new_end.max(u64::from(self.0[high - 1].0) + u64::from(self.0[high - 1].1));
        }
        self.0.splice(low..high, [(new_start as u32, (new_end - new_start) as u32)]);
    }

    /// Takes one number out; whether it was there.
    pub fn remove(&mut self, n: u32) -> bool {
        let had = self.contains(n);
        if had {
            self.remove_range(n, 1);
        }
        had
    }

    /// Takes `{first, .., first + count - 1}` out.
    pub fn remove_range(&mut self, first: u32, count: u32) {
        if count == 0 {
            return;
        }
        let (start, end) = (u64::from(first), u64::from(first) + u64::from(count));
        let low = self.0.partition_point(|r| u64::from(r.0) + u64::from(r.1) <= start);
        let high = low + self.0[low..].partition_point(|r| u64::from(r.0) < end);
        if low >= high {
            return;
        }
        let mut keep = Vec::with_capacity(2);
        let left = self.0[low];
        if u64::from(left.0) < start {
            keep.push((left.0, (start - u64::from(left.0)) as u32));
        }
        let right = self.0[high - 1];
        let right_end = u64::from(right.0) + u64::from(right.1);
        if right_end > end {
            keep.push((end as u32, (right_end - end) as u32));
        }
        self.0.splice(low..high, keep);
    }

    /// Takes the smallest `most` numbers out as a set of their own.
    pub fn take_first(&mut self, most: u64) -> Ranges {
        let mut left = most;
        let mut taken = Vec::new();
        while left > 0 {
            let Some(&(first, count)) = self.0.get(taken.len()) else { break };
            let here = u64::from(count).min(left) as u32;
            taken.push((first, here));
            left -= u64::from(here);
            if here < count {
                self.0[taken.len() - 1] = (first + here, count - here);
                self.0.drain(..taken.len() - 1);
                return Ranges(taken);
            }
        }
        self.0.drain(..taken.len());
        Ranges(taken)
    }

    /// Adds all of `other`.
    pub fn union_with(&mut self, other: &Ranges) {
        for &(first, count) in &other.0 {
            self.insert_range(first, count);
        }
    }

    /// Takes all of `other` out.
    pub fn subtract(&mut self, other: &Ranges) {
        for &(first, count) in &other.0 {
            self.remove_range(first, count);
        }
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Ranges) -> Ranges {
        let mut out = Vec::new();
        let (mut i, mut j) = (0, 0);
        while i < self.0.len() && j < other.0.len() {
            let (a, b) = (self.0[i], other.0[j]);
            let (a_end, b_end) = (u64::from(a.0) + u64::from(a.1), u64::from(b.0) + u64::from(b.1));
            let (start, end) = (u64::from(a.0.max(b.0)), a_end.min(b_end));
            if start < end {
                out.push((start as u32, (end - start) as u32));
            }
            if a_end <= b_end { i += 1 } else { j += 1 }
        }
        Ranges(out)
    }
}

impl FromIterator<u32> for Ranges {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        let mut out = Ranges::new();
        for n in numbers {
            out.insert(n);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set(ops in proptest::collection::vec((0u8..4, 0u32..60, 0u32..12), 0..60)) {
            let (mut ranges, mut set) = (Ranges::new(), BTreeSet::new());
            for (op, first, count) in ops {
                match op {
                    0 => { ranges.insert_range(first, count); set.extend(first..first + count); }
                    1 => { ranges.remove_range(first, count); for n in first..first + count { set.remove(&n); } }
                    2 => {
                        let taken = ranges.take_first(u64::from(count));
                        let expected: Vec<u32> = set.iter().copied().take(count as usize).collect();
                        prop_assert_eq!(taken.iter().collect::<Vec<_>>(), expected.clone());
                        for n in expected { set.remove(&n); }
                    }
                    _ => {
                        let other = Ranges::from_range(first, count);
                        let both: Vec<u32> = set.iter().copied().filter(|n| other.contains(*n)).collect();
                        prop_assert_eq!(ranges.intersection(&other).iter().collect::<Vec<_>>(), both);
                    }
                }
                prop_assert_eq!(ranges.iter().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
                prop_assert!(ranges.pairs().windows(2).all(|w| w[0].0 + w[0].1 < w[1].0));
                prop_assert_eq!(ranges.len(), set.len() as u64);
                for n in 0..80 { prop_assert_eq!(ranges.contains(n), set.contains(&n)); }
            }
        }
    }

    #[test]
    fn the_top_of_the_number_line_is_safe() {
        let mut r = Ranges::from_range(u32::MAX - 1, 2);
        assert!(r.contains(u32::MAX));
        assert!(r.remove(u32::MAX));
        assert_eq!(r.pairs(), &[(u32::MAX - 1, 1)]);
    }

    #[test]
    fn bad_input_is_refused() {
        for bad in ["[[5,0]]", "[[5,2],[6,1]]", "[[5,2],[7,1]]", "[[4294967295,2]]", "[[9,1],[1,1]]"] {
            assert!(serde_json::from_str::<Ranges>(bad).is_err(), "{bad}");
        }
    }
}
