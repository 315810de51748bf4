//! LSF and OpenLava: `bqueues -l` for queues, `lshosts -w` for hosts. Both speak these since LSF 4.

use super::{Answer, Survey, add_nodes, lines, name_nodes};
use crate::profile::{Node, Queue};

pub const QUESTIONS: &[&[&str]] = &[&["lsid"], &["bqueues", "-l"], &["lshosts", "-w"]];

pub fn read<'a>(survey: &mut Survey, answer: impl Fn(usize) -> &'a Answer) -> usize {
    let said = &answer(0).stdout;
    survey.version = said.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("").to_owned();
    survey.dialect = Some(if said.to_ascii_lowercase().contains("openlava") { "openlava" } else { "ibm" });
    let mut current: Option<(Queue, bool)> = None;
    let mut heading: Vec<&str> = Vec::new();
    let mut close = |done: Option<(Queue, bool)>| {
        if let Some((queue, open)) = done {
            if open { survey.queues.push(queue) } else { survey.closed.push(queue.name) }
        }
    };
    for line in lines(&answer(1).stdout) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(name) = line.strip_prefix("QUEUE:") {
            close(current.take());
            current = Some((Queue { name: name.trim().to_owned(), ..Queue::default() }, true));
        } else if let Some((queue, open)) = &mut current {
            values(queue, open, &heading, &words, line);
        }
        heading = words;
    }
    close(current.take());
    for line in lines(&answer(2).stdout).skip(1) {
        if let Some(node) = host(line) {
            add_nodes(&mut survey.nodes, node, 1);
        }
    }
    name_nodes(&mut survey.nodes);
    1
}

/// The line below a heading.
fn values(queue: &mut Queue, open: &mut bool, heading: &[&str], words: &[&str], line: &str) {
    if let Some(column) = heading.iter().position(|h| *h == "STATUS") {
        *open = words.get(column).is_none_or(|s| s.starts_with("Open:"));
    }
    if heading == ["RUNLIMIT"] {
        // `720.0 min of hostA`, or `30.0 min`.
        queue.walltime_max_minutes =
            words.first().and_then(|w| w.split('.').next()?.parse().ok()).filter(|m| *m > 0);
    }
    if let Some(about) = line.trim_start().strip_prefix("-- ") {
        queue.about = about.trim().to_owned();
    }
}

/// `HOST_NAME type model cpuf ncpus maxmem maxswp server RESOURCES`.
fn host(line: &str) -> Option<Node> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_name, _kind, _model, _factor, cpus, memory, _swap, server, ..] = fields.as_slice() else {
        return None;
    };
    let cores: u32 = cpus.parse().ok()?;
    (*server == "Yes").then_some(Node { cores: Some(cores), memory_gib: gib(memory), ..Node::default() })
}

/// `16384M`, `251.6G`, `1.5T`; `-` where LIM does not know.
fn gib(text: &str) -> Option<u32> {
    let unit = text.chars().next_back()?;
    let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
    let gib = match unit {
        'M' => number / 1024.0,
        'G' => number,
        'T' => number * 1024.0,
        _ => return None,
    };
    (gib.is_finite() && (1.0..1e6).contains(&gib)).then_some(gib as u32)
}
