//! PBS Pro, OpenPBS and Torque: `qstat -Q -f` for queues, `pbsnodes -a` for nodes. JSON where there is JSON, else the text that all of
//! them have spoken for decades.

use super::{Answer, Survey, add_nodes, clock_minutes, lines, name_nodes};
use crate::profile::{Node, Queue};
use serde_json::Value;
use std::collections::BTreeMap;

pub const QUESTIONS: &[&[&str]] = &[
    &["qstat", "--version"],
    &["qstat", "-Q", "-f", "-F", "json"],
    &["qstat", "-Q", "-f"],
    &["pbsnodes", "-a"],
    &["qstat", "-B", "-f"],
];

/// Attributes of a queue, a node or a server, with dots in names of resources.
type Attributes = BTreeMap<String, String>;

pub fn read<'a>(survey: &mut Survey, answer: impl Fn(usize) -> &'a Answer) -> usize {
    let (stdout, stderr) = (&answer(0).stdout, &answer(0).stderr);
    survey.version =
        [stdout, stderr].into_iter().flat_map(|t| t.lines()).next().unwrap_or("").trim().to_owned();
    survey.dialect = Some(if stdout.contains("pbs_version") { "openpbs" } else { "torque" });
    let json = json_queues(&answer(1).stdout);
    let queues = if json.is_empty() { text_items(&answer(2).stdout, "Queue: ") } else { json };
    for (name, attributes) in queues {
        let says = |key: &str, word: &str| attributes.get(key).is_some_and(|v| v.eq_ignore_ascii_case(word));
        if says("enabled", "false") || says("started", "false") {
            survey.closed.push(name);
            continue;
        }
        survey.queues.push(queue(name, &attributes));
    }
    for (name, attributes) in text_items(&answer(3).stdout, "") {
        let down = attributes.get("state").is_some_and(|s| s.contains("state-unknown"));
        if !name.is_empty() && !down {
            add_nodes(&mut survey.nodes, node(&attributes), 1);
        }
    }
    name_nodes(&mut survey.nodes);
    let server = text_items(&answer(4).stdout, "Server: ");
    survey.default_queue = server.into_iter().find_map(|(_, a)| a.get("default_queue").cloned());
    if answer(1).exit == Some(0) { 1 } else { 2 }
}

fn queue(name: String, attributes: &Attributes) -> Queue {
    let number = |key: &str| attributes.get(key).and_then(|v| v.parse().ok());
    let minutes = |key: &str| attributes.get(key).and_then(|v| clock_minutes(v));
    Queue {
        name,
        about: if attributes.get("queue_type").is_some_and(|t| t == "Route") {
            "routes jobs on".into()
        } else {
            String::new()
        },
        nodes_min: number("resources_min.nodect").filter(|n| *n > 1),
        nodes_max: number("resources_max.nodect"),
        walltime_max_minutes: minutes("resources_max.walltime"),
        walltime_min_minutes: minutes("resources_min.walltime"),
        jobs_max: attributes.get("max_queued").and_then(|v| limit_of_user(v)),
        running_max: attributes.get("max_run").and_then(|v| limit_of_user(v)),
        on_request: attributes.get("acl_user_enable").is_some_and(|v| v.eq_ignore_ascii_case("true")),
        ..Queue::default()
    }
}

/// `[u:PBS_GENERIC=2]`, `[o:PBS_ALL=9],[u:PBS_GENERIC=2]`: the limit of any user.
fn limit_of_user(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("u:PBS_GENERIC=")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn node(attributes: &Attributes) -> Node {
    let number = |key: &str| attributes.get(key).and_then(|v| v.parse::<u32>().ok());
    let cores = number("resources_available.ncpus").or_else(|| number("np"));
    Node {
        cores,
        memory_gib: attributes.get("resources_available.mem").and_then(|v| gib(v)),
        gpus: Some(number("resources_available.ngpus").or_else(|| number("gpus")).unwrap_or(0)),
        ..Node::default()
    }
}

/// `64gb`, `528000000kb`.
fn gib(text: &str) -> Option<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let bytes = match text[digits..].to_ascii_lowercase().as_str() {
        "tb" => number.checked_shl(40)?,
        "gb" => number.checked_shl(30)?,
        "mb" => number.checked_shl(20)?,
        "kb" => number.checked_shl(10)?,
        "b" | "" => number,
        _ => return None,
    };
    u32::try_from(bytes >> 30).ok()
}

fn json_queues(text: &str) -> Vec<(String, Attributes)> {
    let parsed: Value = serde_json::from_str(text).unwrap_or(Value::Null);
    let queues = parsed.get("Queue").and_then(Value::as_object);
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let flat = |attributes: &Value| {
        let mut all = Attributes::new();
        for (key, value) in attributes.as_object().into_iter().flatten() {
            match value.as_object() {
                Some(inner) => all.extend(inner.iter().map(|(k, v)| (format!("{key}.{k}"), plain(v)))),
                None => {
                    all.insert(key.clone(), plain(value));
                }
            }
        }
        all
    };
    queues.into_iter().flatten().map(|(name, attributes)| (name.clone(), flat(attributes))).collect()
}

/// Items of the text form: a line `HEAD name` (or the bare name), then indented `key = value`; a line that begins with a tab goes on.
fn text_items(text: &str, head: &str) -> Vec<(String, Attributes)> {
    let mut items: Vec<(String, Attributes)> = Vec::new();
    let mut last: Option<String> = None;
    for line in lines(text) {
        if let Some(more) = line.strip_prefix('\t') {
            if let (Some(key), Some((_, attributes))) = (&last, items.last_mut()) {
                attributes.entry(key.clone()).or_default().push_str(more);
            }
        } else if line.starts_with(' ') {
            if let (Some((key, value)), Some((_, attributes))) = (line.split_once(" = "), items.last_mut()) {
                attributes.insert(key.trim().to_owned(), value.to_owned());
                last = Some(key.trim().to_owned());
            }
        } else if let Some(name) =
            line.strip_prefix(head).map(str::trim).filter(|n| !n.is_empty() && !n.contains(' '))
        {
            items.push((name.to_owned(), Attributes::new()));
        }
    }
    items
}
