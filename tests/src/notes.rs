//! What tasks note of themselves on the file system: each run makes a file of its own with O_EXCL, so that what ran twice is counted, whatever
//! Pilotfish says.

use crate::site::Site;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// A folder of notes.
pub struct Notes {
    dir: PathBuf,
}

impl Notes {
    /// A fresh folder in `site`.
    #[must_use]
    pub fn new(site: &Site) -> Notes {
        let dir = site.path().join("notes");
        fs::create_dir(&dir).expect("a folder for notes");
        Notes { dir }
    }

    /// A script that notes the beginning of its run, does `work`, and notes the end. No single quotes, so that it can stand in them.
    #[must_use]
    pub fn script(&self, work: &str) -> String {
        let name = format!("{}/$PF_INDEX.$(hostname).$$", self.dir.display());
        format!("set -C; : > {name}.began || exit 99; {work}; : > {name}.done || exit 98")
    }

    /// Label, node and what, of each note.
    fn all(&self) -> Vec<(u32, String, String)> {
        let entries = fs::read_dir(&self.dir).expect("the folder of notes");
        let name = |e: std::io::Result<fs::DirEntry>| e.ok()?.file_name().into_string().ok();
        let note = |name: String| {
            let mut parts = name.split('.');
            let (label, node) = (parts.next()?.parse().ok()?, parts.next()?.to_owned());
            Some((label, node, parts.next_back()?.to_owned()))
        };
        entries.filter_map(name).filter_map(note).collect()
    }

    fn counts(&self, what: &str) -> BTreeMap<u32, usize> {
        let mut counts = BTreeMap::new();
        for (label, _, _) in self.all().into_iter().filter(|(_, _, w)| w == what) {
            *counts.entry(label).or_insert(0) += 1;
        }
        counts
    }

    /// Labels that have begun.
    #[must_use]
    pub fn began(&self) -> BTreeSet<u32> {
        self.counts("began").into_keys().collect()
    }

    /// Labels that came to their end.
    #[must_use]
    pub fn done(&self) -> BTreeSet<u32> {
        self.counts("done").into_keys().collect()
    }

    /// How often each label began.
    #[must_use]
    pub fn runs(&self) -> BTreeMap<u32, usize> {
        self.counts("began")
    }

    /// Nodes on which tasks ran.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<String> {
        self.all().into_iter().map(|(_, node, _)| node).collect()
    }

    /// Labels by the node on which they began.
    #[must_use]
    pub fn labels_by_node(&self) -> BTreeMap<String, BTreeSet<u32>> {
        let mut by_node: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        for (label, node, _) in self.all() {
            by_node.entry(node).or_default().insert(label);
        }
        by_node
    }

    /// Whether a process that noted the beginning of one of these labels is still there.
    #[must_use]
    pub fn alive(&self, labels: &BTreeSet<u32>) -> bool {
        let entries = fs::read_dir(&self.dir).expect("the folder of notes");
        let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let of_them = names.filter(|n| {
            n.split('.').next().and_then(|l| l.parse().ok()).is_some_and(|l| labels.contains(&l))
        });
        let pids: Vec<String> = of_them.filter_map(|n| n.split('.').nth(2).map(str::to_owned)).collect();
        pids.iter().any(|pid| fs::exists(format!("/proc/{pid}")).unwrap_or(false))
    }

    /// Fails unless each of these labels, and no other, began once and came to its end.
    #[track_caller]
    pub fn check_once(&self, labels: RangeInclusive<u32>) {
        let once: BTreeMap<u32, usize> = labels.map(|l| (l, 1)).collect();
        assert_eq!(differing(&self.runs(), &once), "", "how often they began");
        assert_eq!(differing(&self.counts("done"), &once), "", "how often they came to their end");
    }

    /// Fails unless each of these labels came to its end once; some may have been cut off before.
    #[track_caller]
    pub fn check_done_once(&self, labels: RangeInclusive<u32>) {
        let once: BTreeMap<u32, usize> = labels.map(|l| (l, 1)).collect();
        assert_eq!(differing(&self.counts("done"), &once), "", "how often they came to their end");
    }
}

/// `7: 2 times, not 1; ..` where the two differ.
fn differing(found: &BTreeMap<u32, usize>, wanted: &BTreeMap<u32, usize>) -> String {
    let labels: BTreeSet<&u32> = found.keys().chain(wanted.keys()).collect();
    let of = |map: &BTreeMap<u32, usize>, label: &u32| map.get(label).copied().unwrap_or(0);
    let differing = labels.into_iter().filter(|l| of(found, l) != of(wanted, l));
    let words: Vec<String> =
        differing.map(|l| format!("{l}: {} times, not {}", of(found, l), of(wanted, l))).collect();
    words.join("; ")
}
