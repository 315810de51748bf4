//! Whether what a client asks can be done at all: each refusal says what is wrong with which field, and what to do.

use crate::job::Large;
use crate::limits::{AFTER_MAX, LABELS_MAX};
use crate::requests::{Code, Refusal, Tasks};
use pf_protocol::ContentHash;
use pf_protocol::job::{Body, JobSpec};
use pf_protocol::limits::{
    APPEND_TASKS_MAX, ARGUMENT_BYTES_MAX, COMMAND_BYTES_MAX, INLINE_BYTES_MAX, JOB_TASKS_MAX, LIST_ITEMS_MAX,
    NAME_CHARS_MAX, SIGNAL_MAX,
};
use pf_protocol::payload::{PayloadRef, held, held_sum, is_large, refs};
use pf_protocol::resources::{NodeCapacity, Resources};
use std::collections::BTreeMap;

fn bad(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::BadRequest, message)
}

/// A text of people: not too long, nothing that breaks a terminal.
pub(crate) fn name(what: &str, text: &str) -> Result<(), Refusal> {
    if text.chars().count() > NAME_CHARS_MAX {
        return Err(bad(format!("{what} has more than {NAME_CHARS_MAX} characters")));
    }
    if text.chars().any(char::is_control) {
        return Err(bad(format!("{what} {text:?} has control characters")));
    }
    Ok(())
}

/// The name of an endpoint or a token: it stands in URLs and file names.
pub(crate) fn plain_name(what: &str, text: &str) -> Result<(), Refusal> {
    name(what, text)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.starts_with('.') || !text.chars().all(plain) {
        return Err(bad(format!("{what} {text:?} is not usable")).hint("use letters, digits, - and _"));
    }
    Ok(())
}

/// What does not depend on what is there: sizes and contradictions.
pub(crate) fn spec(spec: &JobSpec) -> Result<(), Refusal> {
    name("the job's name", spec.name.as_deref().unwrap_or_default())?;
    name("the account", spec.account.as_deref().unwrap_or_default())?;
    if spec.labels.len() > LABELS_MAX {
        return Err(bad(format!("{} labels, {LABELS_MAX} are the limit", spec.labels.len())));
    }
    for (key, value) in &spec.labels {
        name("a label's name", key)?;
        name("a label's value", value)?;
    }
    if spec.endpoints.len() > 1 {
        let refusal = Refusal::new(Code::NotSupported, "a job with several endpoints is not supported yet");
        return Err(refusal.hint("name one endpoint"));
    }
    if spec.after.len() > AFTER_MAX {
        return Err(bad(format!("it waits for {} jobs, {AFTER_MAX} are the limit", spec.after.len())));
    }
    if spec.max_attempts == 0 {
        return Err(bad("max_attempts is 0").hint("1 is \"never try again\""));
    }
    if spec.max_running == Some(0) {
        return Err(bad("max_running is 0: no task could ever run"));
    }
    if spec.array.step == 0 {
        return Err(bad("the array's step is 0"));
    }
    if spec.array.labels.pairs().len() > LIST_ITEMS_MAX {
        return Err(bad(format!("the array has more than {LIST_ITEMS_MAX} runs of labels")));
    }
    if let (Some(limit), Some(needed)) = (spec.time_limit_ms, spec.time_needed_ms)
        && needed > limit
    {
        return Err(bad(format!("time_needed {needed} ms is above time_limit {limit} ms")));
    }
    if spec.time_limit_ms == Some(0) {
        return Err(bad("time_limit is 0: each task would be killed at once"));
    }
    if let Some(signal) = spec.warn_signal.filter(|signal| !(1..=SIGNAL_MAX).contains(signal)) {
        return Err(bad(format!("warn_signal {signal} is no signal")).hint(format!("1 to {SIGNAL_MAX}")));
    }
    resources(&spec.resources)?;
    body(spec)
}

fn resources(resources: &Resources) -> Result<(), Refusal> {
    let unsupported = |what: &str| Refusal::new(Code::NotSupported, format!("{what} not supported yet"));
    if resources.nodes == 0 {
        return Err(bad("resources.nodes is 0"));
    }
    if resources.nodes > 1 || resources.ranks_per_node > 0 {
        return Err(
            unsupported("tasks of several nodes or ranks (MPI) are").hint("ask for one node, no ranks")
        );
    }
    if !resources.alternatives.is_empty() {
        return Err(unsupported("alternatives of resources are").hint("say one set of resources"));
    }
    if resources.cores == 0 && resources.gpus_milli == 0 {
        return Err(bad("the task asks for no core and no GPU").hint("ask for at least 1 core"));
    }
    Ok(())
}

fn body(spec: &JobSpec) -> Result<(), Refusal> {
    let env: usize = spec.env.vars.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
    if let Some(key) = spec.env.vars.keys().find(|key| key.is_empty() || key.contains(['=', '\0'])) {
        return Err(bad(format!("{key:?} cannot be the name of an environment variable")));
    }
    if let Some((key, _)) = spec.env.vars.iter().find(|(_, value)| value.contains('\0')) {
        return Err(bad(format!("environment variable {key} has a NUL byte")));
    }
    let argv: usize = match &spec.body {
        Body::Python(_) => 0,
        Body::Command(command) => {
            if command.argv.first().is_none_or(String::is_empty) {
                return Err(bad("the command is empty").hint("give a program to run"));
            }
            if command.argv.iter().any(|arg| arg.contains('\0')) {
                return Err(bad("an argument of the command has a NUL byte"));
            }
            command.argv.iter().map(|arg| arg.len() + 1).sum()
        }
    };
    if argv + env > COMMAND_BYTES_MAX {
        let refusal = Refusal::new(
            Code::TooLarge,
            format!("command and environment have {} bytes, {COMMAND_BYTES_MAX} are the limit", argv + env),
        );
        return Err(refusal.hint("put what is long into a file"));
    }
    Ok(())
}

/// Tasks of a submit or an append, to be added to `total` others. `known`: the large payloads that they may name.
pub(crate) fn tasks(
    spec: &JobSpec,
    total: u32,
    tasks: &Tasks,
    known: &BTreeMap<ContentHash, Large>,
) -> Result<(), Refusal> {
    let count = tasks.count;
    let has_items = !tasks.lens.is_empty();
    if has_items && tasks.lens.len() != count as usize {
        return Err(bad(format!("{count} tasks, but {} items", tasks.lens.len())));
    }
    if has_items && count > APPEND_TASKS_MAX {
        let refusal = Refusal::new(
            Code::TooLarge,
            format!("{count} tasks with items at once, {APPEND_TASKS_MAX} are the limit"),
        );
        return Err(refusal.hint("submit the job open, append in parts, then close it"));
    }
    let most = if spec.array.labels.is_empty() {
        u64::from(JOB_TASKS_MAX)
    } else {
        spec.array.labels.len().min(u64::from(JOB_TASKS_MAX))
    };
    if u64::from(total) + u64::from(count) > most {
        let message =
            format!("the job would have {} tasks, {most} are the limit", u64::from(total) + u64::from(count));
        return Err(Refusal::new(Code::TooLarge, message));
    }
    let bytes = held_sum(&tasks.lens);
    if bytes != tasks.blob.len() as u64 {
        return Err(bad(format!("the items' lengths add up to {bytes} bytes, {} came", tasks.blob.len())));
    }
    items(spec, tasks)?;
    let named = refs(&tasks.lens, &tasks.blob)
        .ok_or_else(|| bad("an item is marked as large, but names no payload"))?;
    let is_known = |name: &&PayloadRef| known.get(&name.hash).is_some_and(|large| large.len == name.len);
    match named.iter().find(|name| !is_known(name)) {
        None => Ok(()),
        Some(name) => {
            let message = format!("payload {} of {} bytes was not put for this job", name.hash, name.len);
            Err(Refusal::new(Code::UnknownPayload, message)
                .hint("put it first, then append the tasks that name it"))
        }
    }
}

/// The size of each item.
fn items(spec: &JobSpec, tasks: &Tasks) -> Result<(), Refusal> {
    let is_argument = matches!(&spec.body, Body::Command(command) if !command.item_on_stdin);
    for (at, len) in tasks.lens.iter().enumerate() {
        let (bytes, large) = (held(*len), is_large(*len));
        if is_argument && (large || bytes > ARGUMENT_BYTES_MAX) {
            let what = if large { "is a large payload".into() } else { format!("has {bytes} bytes") };
            let message = format!("item {at} {what}, a command's argument may have {ARGUMENT_BYTES_MAX}");
            return Err(
                Refusal::new(Code::TooLarge, message).hint("feed items to standard input, or pass paths")
            );
        }
        if bytes > INLINE_BYTES_MAX {
            let message = format!("item {at} has {bytes} bytes, {INLINE_BYTES_MAX} may lie in a request");
            return Err(Refusal::new(Code::TooLarge, message)
                .hint("put it as a payload of the job first (PUT /v1/jobs/JOB/payloads/HASH)"));
        }
    }
    Ok(())
}

/// Whether the largest node of an endpoint can run a task of these resources.
pub(crate) fn fits(resources: &Resources, node: &NodeCapacity, endpoint: &str) -> Result<(), Refusal> {
    let Some(why) = resources.why_not_on(node) else { return Ok(()) };
    let message = format!("no node of endpoint {endpoint} can ever run this: {why}");
    let gpus = f64::from(node.gpus_milli) / 1e3;
    let memory = match node.memory_bytes {
        0 => String::new(),
        bytes => format!(", {} MiB of memory", bytes >> 20),
    };
    let features: Vec<&str> = node.features.iter().map(String::as_str).collect();
    let features =
        if features.is_empty() { String::new() } else { format!(", features {}", features.join(" ")) };
    let has = format!("its largest node has {} cores, {gpus} GPUs{memory}{features}", node.cores);
    Err(Refusal::new(Code::NeverRuns, message).hint(has))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use pf_protocol::job::Command;

    fn command() -> JobSpec {
        let argv = vec!["true".into()];
        JobSpec { body: Body::Command(Command { argv, ..Command::default() }), ..JobSpec::default() }
    }

    #[test]
    fn each_refusal_names_the_field() {
        assert_eq!(spec(&command()), Ok(()));
        let with = |change: fn(&mut JobSpec)| {
            let mut changed = command();
            change(&mut changed);
            let refusal = spec(&changed).unwrap_err();
            (refusal.code, refusal.message)
        };
        assert_eq!(with(|s| s.body = Body::Command(Command::default())).1, "the command is empty");
        assert_eq!(with(|s| s.max_attempts = 0).1, "max_attempts is 0");
        assert_eq!(with(|s| s.array.step = 0).1, "the array's step is 0");
        assert_eq!(with(|s| s.name = Some("x".repeat(201))).1, "the job's name has more than 200 characters");
        assert_eq!(with(|s| s.resources.nodes = 2).0, Code::NotSupported);
        assert_eq!(with(|s| s.resources.alternatives.push(Resources::default())).0, Code::NotSupported);
        assert_eq!(with(|s| s.endpoints = vec!["a".into(), "b".into()]).0, Code::NotSupported);
        let large = with(|s| drop(s.env.vars.insert("A".into(), "x".repeat(COMMAND_BYTES_MAX))));
        assert_eq!(large.0, Code::TooLarge);
    }

    #[test]
    fn what_no_node_has_is_refused_with_what_it_has() {
        let node = NodeCapacity { cores: 8, memory_bytes: 1 << 30, ..NodeCapacity::default() };
        let wants = Resources { cores: 9, ..Resources::default() };
        let refusal = fits(&wants, &node, "local").unwrap_err();
        assert_eq!(refusal.code.status(), 422);
        let message = "no node of endpoint local can ever run this: it asks for 9 cores, the node has 8";
        assert_eq!(refusal.message, message);
        let hint = "its largest node has 8 cores, 0 GPUs, 1024 MiB of memory";
        assert_eq!(refusal.hint.as_deref(), Some(hint));
    }

    #[test]
    fn tasks_must_add_up() {
        let refused = |count, lens: &[u32], blob: &'static [u8]| {
            let given = Tasks { count, lens: lens.to_vec(), blob: Bytes::from_static(blob) };
            tasks(&command(), 0, &given, &BTreeMap::new()).err().map(|r| r.code)
        };
        assert_eq!(refused(2, &[1, 2], b"abc"), None);
        assert_eq!(refused(1_000_000, &[], b""), None);
        assert_eq!(refused(2, &[1], b"a"), Some(Code::BadRequest));
        assert_eq!(refused(2, &[1, 2], b"ab"), Some(Code::BadRequest));
        assert_eq!(refused(1, &[200 << 10], &[0; 200 << 10]), Some(Code::TooLarge));
        assert_eq!(refused(JOB_TASKS_MAX + 1, &[], b""), Some(Code::TooLarge));
    }

    #[test]
    fn names_of_endpoints_stand_in_urls() {
        assert!(plain_name("endpoint", "frontier-2.a_b").is_ok());
        for bad in ["", ".", "../x", "a b", "a/b", "é"] {
            assert!(plain_name("endpoint", bad).is_err(), "{bad}");
        }
    }
}
