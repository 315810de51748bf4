//! Resource classes: equal resources on one account are one class, known by a number.

use pf_protocol::resources::Resources;
use std::collections::BTreeMap;

/// One class, with what is counted of it.
#[derive(Debug)]
pub(crate) struct Class {
    pub resources: Resources,
    /// The account that its jobs name.
    pub account: Option<String>,
    pub waiting: u64,
    pub placed: u64,
}

/// The register. Class 0 is one core and nothing else, on no account in particular.
#[derive(Debug)]
pub(crate) struct Classes {
    numbers: BTreeMap<(Resources, Option<String>), usize>,
    pub all: Vec<Class>,
}

impl Classes {
    pub fn new() -> Classes {
        let mut classes = Classes { numbers: BTreeMap::new(), all: Vec::new() };
        classes.number(&Resources::default(), None);
        classes
    }

    /// The number of a class, new or known. Classes are few (one for each distinct need in the life of a relay) and are kept.
    pub fn number(&mut self, resources: &Resources, account: Option<&str>) -> usize {
        let key = (resources.clone(), account.map(str::to_owned));
        if let Some(number) = self.numbers.get(&key) {
            return *number;
        }
        let (resources, account) = key.clone();
        self.all.push(Class { resources, account, waiting: 0, placed: 0 });
        self.numbers.insert(key, self.all.len() - 1);
        self.all.len() - 1
    }
}

/// A class in a few words: `2 cores, 0.5 GPU on account p1`.
pub(crate) fn class_words(class: &Class) -> String {
    match &class.account {
        Some(account) => format!("{} on account {account}", words(&class.resources)),
        None => words(&class.resources),
    }
}

/// Resources in a few words: `2 cores, 0.5 GPU`.
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
