//! Resource classes: equal resources are one class, known by a number.

use pf_protocol::resources::Resources;
use std::collections::BTreeMap;

/// One class, with what is counted of it.
#[derive(Debug)]
pub(crate) struct Class {
    pub resources: Resources,
    pub waiting: u64,
    pub placed: u64,
}

/// The register. Class 0 is one core and nothing else.
#[derive(Debug)]
pub(crate) struct Classes {
    numbers: BTreeMap<Resources, usize>,
    pub all: Vec<Class>,
}

impl Classes {
    pub fn new() -> Classes {
        let mut classes = Classes { numbers: BTreeMap::new(), all: Vec::new() };
        classes.number(&Resources::default());
        classes
    }

    /// The number of a class, new or known. Classes are few (one for each distinct `Resources` in the life of a relay) and are kept.
    pub fn number(&mut self, resources: &Resources) -> usize {
        if let Some(number) = self.numbers.get(resources) {
            return *number;
        }
        self.all.push(Class { resources: resources.clone(), waiting: 0, placed: 0 });
        self.numbers.insert(resources.clone(), self.all.len() - 1);
        self.all.len() - 1
    }
}

/// A class in a few words: `2 cores, 0.5 GPU`.
pub(crate) fn words(resources: &Resources) -> String {
    let mut parts = vec![format!("{} core{}", resources.cores, if resources.cores == 1 { "" } else { "s" })];
    if resources.gpus_milli > 0 {
        parts.push(format!("{} GPU", f64::from(resources.gpus_milli) / 1e3));
    }
    if resources.memory_bytes > 0 {
        parts.push(format!("{} MiB", resources.memory_bytes >> 20));
    }
    if resources.nodes > 1 {
        parts.push(format!("{} nodes", resources.nodes));
    }
    parts.extend(resources.amounts.iter().map(|(name, n)| format!("{n} {name}")));
    parts.extend(resources.features.iter().cloned());
    parts.join(", ")
}
