//! Writes a site profile from what is known of a machine: comments say where each part is from, and what to add.

use super::Survey;
use crate::profile::{Node, Queue};
use std::fmt::Write;

/// What is known beside the scheduler's words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Machine {
    /// What people call it.
    pub title: String,
    /// Name of the provider.
    pub scheduler: String,
    /// Name of the launcher.
    pub launcher: String,
    /// Host name of the login node, by which it will be recognised.
    pub host: String,
    /// Private interfaces of the login node.
    pub interfaces: Vec<String>,
    /// Day on which it was asked: `2026-11-24`.
    pub day: String,
    /// What a probe saw of a node.
    pub node: Option<Node>,
}

/// The profile's text.
#[must_use]
pub fn render(machine: &Machine, survey: &Survey) -> String {
    let mut text = format!(
        "# {}: written by `pf site new` on {} from what {} said on {}.\n\
         # Look it over, and add what a scheduler does not tell: an account that jobs need (requires, account), module load lines (setup),\n\
         # directives of the centre (options), which file system all nodes see ([places]).\n",
        machine.title,
        machine.day,
        if survey.version.is_empty() { &machine.scheduler } else { &survey.version },
        machine.host
    );
    entry(&mut text, "title", &machine.title);
    text.push_str("status = \"active\"\n\n[detect]\n");
    let _ = writeln!(text, "hosts = [{}]", quoted(&pattern(&machine.host)));
    text.push_str("\n[endpoint]\n");
    entry(&mut text, "provider", &machine.scheduler);
    if let Some(dialect) = survey.dialect {
        entry(&mut text, "dialect", dialect);
    }
    entry(&mut text, "launcher", &machine.launcher);
    let queue = survey.default_queue.as_ref().or(survey.queues.first().map(|q| &q.name));
    if let Some(name) = queue {
        entry(&mut text, "queue", name);
    }
    let longest = survey.queues.iter().find(|q| Some(&q.name) == queue).and_then(|q| q.walltime_max_minutes);
    let _ = writeln!(
        text,
        "walltime = \"{}m\"  # at most an hour, so that a first try starts soon",
        longest.unwrap_or(60).min(60)
    );
    if !machine.interfaces.is_empty() {
        let names: Vec<String> = machine.interfaces.iter().map(|i| quoted(i)).collect();
        let _ = writeln!(
            text,
            "interfaces = [{}]  # private ones of {}; `pf site check --submit` tells which a node reaches",
            names.join(", "),
            machine.host
        );
    }
    survey.queues.iter().for_each(|q| queue_table(&mut text, q));
    if !survey.closed.is_empty() {
        let _ = writeln!(text, "\n# Closed on that day: {}.", survey.closed.join(", "));
    }
    survey.nodes.iter().for_each(|n| node_table(&mut text, n, "the scheduler"));
    if let Some(node) = &machine.node {
        node_table(&mut text, node, "a probe");
    }
    text
}

/// `login1.cluster.org` and its siblings: digits at the end of the first label are any.
fn pattern(host: &str) -> String {
    let (first, rest) = host.split_once('.').map_or((host, String::new()), |(f, r)| (f, format!(".{r}")));
    let stem = first.trim_end_matches(|c: char| c.is_ascii_digit());
    let star = if stem == first { "" } else { "*" };
    format!("{stem}{star}{rest}")
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

fn entry(text: &mut String, key: &str, value: &str) {
    let _ = writeln!(text, "{key} = {}", quoted(value));
}

fn number(text: &mut String, key: &str, value: Option<u32>) {
    if let Some(value) = value {
        let _ = writeln!(text, "{key} = {value}");
    }
}

fn queue_table(text: &mut String, queue: &Queue) {
    text.push_str("\n[[queues]]\n");
    entry(text, "name", &queue.name);
    if !queue.about.is_empty() {
        entry(text, "about", &queue.about);
    }
    number(text, "nodes_min", queue.nodes_min);
    number(text, "nodes_max", queue.nodes_max);
    number(text, "walltime_max_minutes", queue.walltime_max_minutes);
    number(text, "walltime_min_minutes", queue.walltime_min_minutes);
    number(text, "running_max", queue.running_max);
    number(text, "jobs_max", queue.jobs_max);
    if queue.on_request {
        text.push_str("on_request = true\n");
    }
}

fn node_table(text: &mut String, node: &Node, from: &str) {
    let _ = writeln!(text, "\n[[nodes]]  # from {from}");
    entry(text, "name", &node.name);
    number(text, "count", node.count);
    number(text, "sockets", node.sockets);
    number(text, "cores", node.cores);
    number(text, "threads_per_core", node.threads_per_core);
    number(text, "numa", node.numa);
    number(text, "memory_gib", node.memory_gib);
    number(text, "gpus", node.gpus);
    if !node.gpu.is_empty() {
        entry(text, "gpu", &node.gpu);
    }
}
