//! Slurm: one `sinfo` for partitions and nodes.

use super::{Answer, Survey, add_nodes, clock_minutes, lines, name_nodes};
use crate::profile::{Node, Queue};
use std::collections::BTreeMap;

/// Partition, up or down, time limit, nodes, state, node list, job size, CPUs, sockets:cores:threads, GRES, memory (MiB).
pub const QUESTIONS: &[&[&str]] =
    &[&["sinfo", "--version"], &["sinfo", "-h", "-o", "%P|%a|%l|%D|%T|%N|%s|%c|%z|%G|%m"]];

struct Row<'a> {
    partition: &'a str,
    up: bool,
    nodes: u32,
    walltime: Option<u32>,
    size: (Option<u32>, Option<u32>),
    node: Node,
}

pub fn read<'a>(survey: &mut Survey, answer: impl Fn(usize) -> &'a Answer) -> usize {
    survey.version = answer(0).stdout.trim().lines().next().unwrap_or("").to_owned();
    let mut by_partition: BTreeMap<String, (Vec<Node>, Queue, bool)> = BTreeMap::new();
    for row in lines(&answer(1).stdout).filter_map(row) {
        let name = row.partition.trim_end_matches('*');
        if name != row.partition {
            survey.default_queue = Some(name.to_owned());
        }
        let (kinds, queue, up) = by_partition.entry(name.to_owned()).or_insert_with(|| {
            let queue = Queue {
                name: name.to_owned(),
                nodes_min: row.size.0.filter(|n| *n > 1),
                walltime_max_minutes: row.walltime,
                ..Queue::default()
            };
            (Vec::new(), queue, row.up)
        });
        let all = queue.nodes_max.unwrap_or(0).saturating_add(row.nodes);
        queue.nodes_max = Some(row.size.1.map_or(all, |most| all.min(most)));
        *up &= row.up;
        add_nodes(kinds, row.node, row.nodes);
    }
    for (kinds, queue, up) in by_partition.into_values() {
        if up {
            survey.queues.push(queue)
        } else {
            survey.closed.push(queue.name)
        }
        // A node may be in several partitions: the one that has most of a kind counts it.
        for kind in kinds {
            let count = kind.count;
            match survey.nodes.iter_mut().find(|k| Node { count, ..(*k).clone() } == kind) {
                Some(known) => known.count = known.count.max(count),
                None => survey.nodes.push(kind),
            }
        }
    }
    name_nodes(&mut survey.nodes);
    1
}

fn row(line: &str) -> Option<Row<'_>> {
    let fields: Vec<&str> = line.split('|').map(str::trim).collect();
    let [partition, up, limit, nodes, _state, _list, size, cpus, shape, gres, memory] = fields.as_slice()
    else {
        return None;
    };
    let number = |text: &str| text.trim_end_matches('+').parse::<u32>().ok();
    let (least, most) = size.split_once('-').unwrap_or((size, size));
    let shape: Vec<u32> = shape.split(':').filter_map(number).collect();
    let (sockets, cores, threads) = match shape.as_slice() {
        [s, c, t] => (Some(*s), s.checked_mul(*c), Some(*t)),
        _ => (None, number(cpus), None),
    };
    let (gpus, gpu) = gpus_of(gres);
    let node = Node {
        sockets,
        cores,
        threads_per_core: threads,
        memory_gib: number(memory).map(|mib| mib / 1024),
        gpus: Some(gpus),
        gpu,
        ..Node::default()
    };
    (!partition.is_empty()).then_some(Row {
        partition,
        up: *up == "up",
        nodes: number(nodes)?,
        walltime: clock_minutes(limit),
        size: (number(least), number(most)),
        node,
    })
}

/// GPUs of `gpu:4`, `gpu:a100:4(S:0-3)`, `gpu:a:1,gpu:b:2,nvme:1`; `(null)` has none.
fn gpus_of(gres: &str) -> (u32, String) {
    let mut count = 0u32;
    let mut models = Vec::new();
    let mut depth = 0;
    // Commas within parentheses belong to the socket list.
    let parts = gres.split(|c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth <= 0
    });
    for part in parts {
        let part = part.split('(').next().unwrap_or("");
        let words: Vec<&str> = part.split(':').collect();
        match words.as_slice() {
            ["gpu", n] => count = count.saturating_add(n.parse().unwrap_or(0)),
            ["gpu", model, n] => {
                count = count.saturating_add(n.parse().unwrap_or(0));
                models.push(*model);
            }
            _ => {}
        }
    }
    (count, models.join(", "))
}

#[cfg(test)]
mod tests {
    use super::gpus_of;

    #[test]
    fn gpus_are_counted_in_all_spellings() {
        for (gres, expected) in [
            ("gpu:4", (4, "")),
            ("gpu:a100:4(S:0,2-3),nvme:1", (4, "a100")),
            ("gpu:a:1,gpu:b:2", (3, "a, b")),
            ("(null)", (0, "")),
            ("craynetwork:4,gpu:8(S:0)", (8, "")),
        ] {
            assert_eq!(gpus_of(gres), (expected.0, expected.1.to_owned()), "{gres}");
        }
    }
}
