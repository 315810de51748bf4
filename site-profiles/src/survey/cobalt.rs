//! Cobalt: `qstat -Q` for queues. It has no command for nodes that all kinds of its machines share: a probe tells what they are.

use super::{Answer, Survey, clock_minutes, lines};
use crate::profile::Queue;

pub const QUESTIONS: &[&[&str]] = &[&["qsub", "--version"], &["qstat", "-Q"]];

pub fn read<'a>(survey: &mut Survey, answer: impl Fn(usize) -> &'a Answer) -> usize {
    let (stdout, stderr) = (&answer(0).stdout, &answer(0).stderr);
    survey.version =
        [stdout, stderr].into_iter().flat_map(|t| t.lines()).next().unwrap_or("").trim().to_owned();
    let mut all = lines(&answer(1).stdout);
    let heading = all.next().unwrap_or("");
    // Columns are as wide as their longest entry; the heading says where each begins.
    let column = |title: &str| heading.find(title);
    for line in all.filter(|l| !l.starts_with('=')) {
        let field = |title: &str| {
            let text = line.get(column(title)?..)?;
            text.split("  ").next().map(str::trim).filter(|t| !t.is_empty() && *t != "None")
        };
        let Some(name) = field("Name") else { continue };
        if field("State") != Some("running") {
            survey.closed.push(name.to_owned());
            continue;
        }
        let number = |title: &str| field(title).and_then(|t| t.parse().ok());
        survey.queues.push(Queue {
            name: name.to_owned(),
            nodes_max: number("TotalNodes"),
            walltime_max_minutes: field("MaxTime").and_then(clock_minutes),
            walltime_min_minutes: field("MinTime").and_then(clock_minutes),
            running_max: number("MaxRunning"),
            jobs_max: number("MaxQueued"),
            ..Queue::default()
        });
    }
    survey.default_queue = survey.queues.iter().find(|q| q.name == "default").map(|q| q.name.clone());
    1
}
