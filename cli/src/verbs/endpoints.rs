//! `endpoint ..` and `block ..`.

use crate::Context;
use crate::args::manage::{BlockArgs, EndpointAddArgs};
use crate::args::{BlockVerb, EndpointVerb};
use crate::client::{Again, Body, Client, escape};
use crate::config::layers::{check_name, nearest_hint};
use crate::config::register::{ENDPOINT_SECTION, KEYS, Key};
use crate::config::value::Value;
use crate::config::{Settings, profiles};
use crate::error::{CliError, Result, io_error};
use crate::exit::Exit;
use crate::limits::{FOLLOW_EVERY, NOTE_EVERY, POLL_EVERY, START_TIMEOUT};
use crate::output::table::{count, table};
use crate::units::{show_bytes, show_milli, show_time, show_us};
use hyper::Method;
use pf_protocol::api::EndpointRow;
use pf_protocol::report::{BlockEnd, BlockReport, BlockState, EndpointReport, NodeHours, ShapeReport};
use serde_json::json;
use std::io::Write;
use std::time::Instant;

/// `pf endpoint ..`.
pub async fn endpoint(context: &Context, verb: EndpointVerb) -> Result<Exit> {
    if let EndpointVerb::Add(args) = &verb {
        return add(context, args).await;
    }
    let client = super::daemon::client(context).await?;
    let output = &context.output;
    let nothing = json!({});
    match verb {
        EndpointVerb::Add(_) => {}
        EndpointVerb::List => list(context, &client).await?,
        EndpointVerb::Show { name } => {
            let row = client.endpoint(&name).await?;
            output.answer(&row, std::slice::from_ref(&name), || show(context, &row))?;
        }
        EndpointVerb::Explain { name } => {
            let row = client.endpoint(&name).await?;
            output.answer(&row, std::slice::from_ref(&name), || explain_lines(&row).join("\n"))?;
        }
        EndpointVerb::Start { name } | EndpointVerb::Resume { name } => {
            if client.endpoint(&name).await?.state == "stopped" {
                bring_back(context, &client, &name).await?;
            }
            client.endpoint_verb(&name, "resume", &nothing).await?;
            super::daemon::warn_of_login_rules(context);
            done(context, &name, "takes tasks")?;
        }
        EndpointVerb::Pause { name } => {
            client.endpoint_verb(&name, "pause", &nothing).await?;
            done(context, &name, "starts no new tasks")?;
        }
        EndpointVerb::Stop { name, kill } => {
            client.endpoint_verb(&name, "stop", &json!({"kill": kill})).await?;
            wait_for_stop(context, &client, &name).await?;
            done(context, &name, "has stopped, and gave its nodes back")?;
        }
        EndpointVerb::Remove { name } => {
            let path = format!("/v1/endpoints/{}", escape(&name));
            client.call::<serde_json::Value>(Method::DELETE, &path, Body::default(), Again::Yes).await?;
            done(context, &name, "is forgotten")?;
            if context.config.endpoints.contains_key(&name) {
                context.output.say(
                    "it comes back with the next broker here: remove its section from your configuration too",
                );
            }
        }
    }
    Ok(Exit::Ok)
}

fn done(context: &Context, name: &str, what: &str) -> Result<()> {
    context.output.answer(&json!({"endpoint": name, "done": what}), &[], || format!("endpoint {name} {what}"))
}

/// The relay of a stopped endpoint of this host has left; it comes back with a daemon that begins anew, over which jobs and blocks of others live on.
async fn bring_back(context: &Context, client: &Client, name: &str) -> Result<()> {
    if !client.is_local() || !context.config.endpoints.contains_key(name) {
        let error =
            CliError::new(Exit::Refused, format!("endpoint {name} is stopped, and is not of this host"));
        return Err(error.hint(format!("on its own host: pf relay run {name} ..")));
    }
    super::daemon::restart(context).await?;
    let give_up = Instant::now() + START_TIMEOUT;
    while client.endpoint(name).await?.state != "connected" {
        if Instant::now() > give_up {
            let seconds = START_TIMEOUT.as_secs();
            let error =
                CliError::internal(format!("the relay of endpoint {name} is not there after {seconds} s"));
            return Err(error.hint(format!("pf endpoint show {name}")));
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    Ok(())
}

/// Waits until the relay has left, which it does when nothing of it runs or is queued any more; says once what holds it up.
async fn wait_for_stop(context: &Context, client: &Client, name: &str) -> Result<()> {
    let began = Instant::now();
    let mut told = false;
    loop {
        let row = client.endpoint(name).await?;
        if row.state != "connected" {
            return Ok(());
        }
        if !told && began.elapsed() >= NOTE_EVERY {
            told = true;
            let tasks: u32 = row.report.iter().flat_map(|r| &r.managers).map(|m| m.running).sum();
            let blocks = row.report.iter().flat_map(|r| &r.blocks);
            let live = blocks.filter(|b| !matches!(b.state, BlockState::Ended(_))).count();
            context.output.say(format!(
                "endpoint {name} is stopping (tasks that run: {tasks}, blocks not over: {live}); it goes on without this command"
            ));
            if tasks > 0 {
                context.output.say(format!("hint: `pf endpoint stop --kill {name}` does not wait for tasks"));
            }
        }
        tokio::time::sleep(FOLLOW_EVERY).await;
    }
}

/// Makes an endpoint: one of this host is a section of the user's file, one elsewhere is told to the broker.
async fn add(context: &Context, args: &EndpointAddArgs) -> Result<Exit> {
    if let Some(key) = &args.relay_key {
        let client = super::daemon::client(context).await?;
        let path = format!("/v1/endpoints/{}", escape(&args.name));
        client
            .call::<serde_json::Value>(
                Method::PUT,
                &path,
                Body::json(&json!({"relay_key": key}))?,
                Again::Yes,
            )
            .await?;
        done(context, &args.name, "is known; the relay with that key may serve it")?;
        return Ok(Exit::Ok);
    }
    check_name(&args.name, "an endpoint", &"pf endpoint add")?;
    let mut sources = context.surroundings.sources(context.config_flag.as_deref())?;
    let known = profiles::names(&sources.profiles);
    if !known.contains(&args.profile) {
        let error = CliError::usage(format!("there is no site profile {:?}", args.profile));
        return Err(error.hint(nearest_hint(&args.profile, known.iter().map(String::as_str), "profile")));
    }
    if context.config.endpoints.contains_key(&args.name) {
        return Err(CliError::new(Exit::Refused, format!("endpoint {} exists already", args.name))
            .hint(format!("see `pf endpoint show {}`", args.name)));
    }
    let path = context.surroundings.user_file_to_write(context.config_flag.as_deref())?;
    let mut section = format!("\n[endpoints.{}]\nprofile = {:?}\n", args.name, args.profile);
    for (key, value) in &args.set {
        section.push_str(&setting_line(key, value)?);
    }
    // The whole is loaded as it will be before a byte is written.
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    sources.edited = Some((path.clone(), format!("{before}{section}")));
    Settings::load(&sources)?;
    let write = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::OpenOptions::new().create(true).append(true).open(&path)?.write_all(section.as_bytes())
    };
    write().map_err(|e| io_error(format!("write configuration {}", path.display()), e))?;
    done(context, &args.name, &format!("is written to {}", path.display()))?;
    if super::daemon::restart(context).await? {
        let row = super::daemon::client(context).await?.endpoint(&args.name).await?;
        stuck_words(&row).iter().for_each(|words| context.output.say(format!("warning: {words}")));
    }
    Ok(Exit::Ok)
}

/// A line of the configuration, from `--set KEY=VALUE`.
fn setting_line(key: &str, value: &str) -> Result<String> {
    let settings = || KEYS.iter().filter(|k| k.section() == ENDPOINT_SECTION && k.short() != "profile");
    let Some(found) = settings().find(|k| k.short() == key) else {
        let error = CliError::usage(format!("--set {key}: endpoints have no such setting"));
        return Err(error.hint(nearest_hint(key, settings().map(Key::short), "setting")));
    };
    let value = Value::from_text(value, found.kind)
        .map_err(|why| CliError::usage(format!("--set {key}={value}: {key} {why}")))?;
    Ok(format!("{key} = {value}\n"))
}

/// Rows of a list of endpoints.
pub fn endpoint_table(context: &Context, rows: &[EndpointRow]) -> String {
    let rows = rows.iter().map(|row| {
        let empty = EndpointReport::default();
        let report = row.report.as_ref().unwrap_or(&empty);
        let live = report.blocks.iter().filter(|b| !matches!(b.state, BlockState::Ended(_))).count();
        let cores: u32 = report.managers.iter().map(|m| m.capacity.cores).sum();
        let busy: u32 = report.managers.iter().map(|m| m.cores_busy).sum();
        let tasks = format!("{} queued, {} assigned", row.queued, row.assigned);
        let state = if report.paused.is_some() { "paused".to_owned() } else { row.state.clone() };
        vec![row.name.clone(), state, tasks, live.to_string(), format!("{busy}/{cores}"), report.host.clone()]
    });
    table(
        &context.output,
        &["ENDPOINT", "STATE", "TASKS", "BLOCKS", "CORES BUSY", "RELAY ON"],
        rows.collect(),
    )
}

async fn list(context: &Context, client: &Client) -> Result<()> {
    let rows = client.endpoints().await?;
    if context.output.json {
        return rows.iter().try_for_each(|row| context.output.json(row));
    }
    let names: Vec<String> = rows.iter().map(|r| r.name.clone()).collect();
    context.output.answer(&(), &names, || endpoint_table(context, &rows))
}

fn show(context: &Context, row: &EndpointRow) -> String {
    let mut parts = vec![endpoint_table(context, std::slice::from_ref(row))];
    parts.extend(stuck_words(row));
    let Some(report) = &row.report else { return parts.join("\n") };
    if !report.blocks.is_empty() {
        parts.push(block_table(context, &[(row.name.clone(), report.blocks.clone())]));
    }
    if !report.managers.is_empty() {
        let rows = report.managers.iter().map(|m| {
            let capacity = &m.capacity;
            let memory =
                if capacity.memory_bytes > 0 { show_bytes(capacity.memory_bytes) } else { String::new() };
            let cores = format!("{}/{}", m.cores_busy, capacity.cores);
            vec![
                m.manager.clone(),
                m.node.clone(),
                cores,
                show_milli(capacity.gpus_milli),
                memory,
                m.running.to_string(),
                m.held.to_string(),
            ]
        });
        parts.push(table(
            &context.output,
            &["MANAGER", "NODE", "CORES BUSY", "GPUS", "MEMORY", "RUNNING", "HELD"],
            rows.collect(),
        ));
    }
    parts.extend(report.waiting_why.iter().map(|(class, why)| format!("{class}: {why}")));
    parts.join("\n")
}

/// Why an endpoint is not served, or is paused, and what ends that.
pub fn stuck_words(row: &EndpointRow) -> Option<String> {
    let name = &row.name;
    if let Some(why) = &row.broken {
        return Some(format!("endpoint {name} is broken: {why}; then `pf broker stop`, and it begins anew"));
    }
    let why = row.report.as_ref()?.paused.as_ref()?;
    Some(format!("endpoint {name} is paused: {why}; `pf endpoint resume {name}` when that is mended"))
}

fn explain_lines(row: &EndpointRow) -> Vec<String> {
    let mut lines = vec![format!(
        "endpoint {} is {}: {} in the broker's queue, {} handed out",
        row.name,
        row.state,
        count(row.queued, "task"),
        row.assigned
    )];
    lines.extend(stuck_words(row));
    let Some(report) = &row.report else {
        if row.broken.is_none() {
            lines.push("no relay has reported yet".into());
        }
        return lines;
    };
    lines.push(format!(
        "{} at the relay for want of a slot, {} at managers",
        count(report.waiting, "task"),
        report.placed
    ));
    lines.extend(report.waiting_why.iter().map(|(class, why)| format!("  {class}: {why}")));
    lines.extend(report.shapes.iter().map(shape_line));
    lines.push(hours_line(&report.node_hours));
    lines.extend(report.blocks.iter().filter(|b| b.tail).map(|b| {
        format!("{} is in its tail: few of its nodes have a task; it is given back when these end", b.block)
    }));
    for node in &report.quarantine {
        let until = show_time(node.until_ms);
        lines.push(format!("node {} gets no tasks until {until} UTC: {}", node.node, node.reason));
    }
    lines.push("decisions, newest last:".into());
    lines.extend(report.decisions.iter().map(|d| format!("  {} {}", show_time(d.at_ms), d.text)));
    lines
}

/// One shape of blocks, and why there is, or is not, another.
fn shape_line(shape: &ShapeReport) -> String {
    let most = if shape.blocks_max == u32::MAX { String::new() } else { format!(" of {}", shape.blocks_max) };
    format!(
        "shape {} ({}, {}): {}{most} blocks; {}",
        shape.shape,
        count(shape.nodes.into(), "node"),
        show_us(shape.walltime_ms.saturating_mul(1_000)),
        shape.blocks,
        shape.why
    )
}

fn hours_line(hours: &NodeHours) -> String {
    let limit = hours.limit_node_ms.map(|n| format!(", the limit is {}", show_hours(n))).unwrap_or_default();
    format!(
        "node-hours: {} used, {} of them without a task; blocks may use {} more{limit}",
        show_hours(hours.used_node_ms),
        show_hours(hours.idle_node_ms),
        show_hours(hours.intended_node_ms)
    )
}

/// Node-hours from node-milliseconds.
fn show_hours(node_ms: u64) -> String {
    format!("{:.2}", node_ms as f64 / 3_600_000.0)
}

/// The state of a block in a few words.
fn block_words(state: &BlockState) -> String {
    let with =
        |word: &str, why: &str| if why.is_empty() { word.to_owned() } else { format!("{word}: {why}") };
    match state {
        BlockState::Intended => "intended".into(),
        BlockState::Queued(why) => with("queued", why),
        BlockState::Held(why) => with("held", why),
        BlockState::Starting => "starting".into(),
        BlockState::Running => "running".into(),
        BlockState::Ending => "ending".into(),
        BlockState::Unknown(text) => with("unknown", text),
        BlockState::Impossible(why) => with("will never run", why),
        BlockState::Suspended(why) => with("suspended", why),
        BlockState::Ended(end) => match end {
            BlockEnd::Completed => "ended".into(),
            BlockEnd::Failed(code) => format!("failed: exit code {code}"),
            BlockEnd::Signal(signal) => format!("failed: signal {signal}"),
            BlockEnd::Walltime => "ended: walltime".into(),
            BlockEnd::Cancelled => "ended: cancelled".into(),
            BlockEnd::Preempted => "ended: preempted".into(),
            BlockEnd::NodeFailed => "ended: a node failed".into(),
            BlockEnd::OutOfMemory => "ended: out of memory".into(),
            BlockEnd::SubmitFailed(why) => with("submit failed", why),
            BlockEnd::LaunchFailed(why) => with("start failed", why),
            BlockEnd::Unknown(text) => with("ended: nobody can tell how", text),
        },
    }
}

fn block_table(context: &Context, blocks: &[(String, Vec<BlockReport>)]) -> String {
    let rows = blocks.iter().flat_map(|(endpoint, blocks)| blocks.iter().map(move |b| (endpoint, b))).map(
        |(endpoint, b)| {
            vec![
                b.block.to_string(),
                endpoint.clone(),
                block_words(&b.state),
                b.nodes.to_string(),
                b.managers.to_string(),
                b.walltime_left_ms.map(|ms| show_us(ms * 1_000)).unwrap_or_default(),
                format!("{} ({} idle)", show_hours(b.used_node_ms), show_hours(b.idle_node_ms)),
                b.scheduler_id.clone().unwrap_or_default(),
            ]
        },
    );
    table(
        &context.output,
        &["BLOCK", "ENDPOINT", "STATE", "NODES", "MANAGERS", "TIME LEFT", "NODE-HOURS", "SCHEDULER'S ID"],
        rows.collect(),
    )
}

/// `pf block ..`.
pub async fn block(context: &Context, verb: BlockVerb) -> Result<Exit> {
    let client = super::daemon::client(context).await?;
    let output = &context.output;
    let endpoint_of =
        |args: &BlockArgs| args.endpoint.clone().unwrap_or_else(|| context.config.default_endpoint.clone());
    match verb {
        BlockVerb::List { endpoint } => {
            let rows = match &endpoint {
                Some(name) => vec![client.endpoint(name).await?],
                None => client.endpoints().await?,
            };
            let blocks: Vec<(String, Vec<BlockReport>)> = rows
                .into_iter()
                .map(|r| (r.name, r.report.map(|report| report.blocks).unwrap_or_default()))
                .collect();
            let ids: Vec<String> =
                blocks.iter().flat_map(|(_, b)| b.iter().map(|b| b.block.to_string())).collect();
            if output.json {
                for (endpoint, block) in blocks.iter().flat_map(|(e, list)| list.iter().map(move |b| (e, b)))
                {
                    output.json(&json!({"endpoint": endpoint, "block": block}))?;
                }
            } else if ids.is_empty() {
                output.say("no blocks");
            } else {
                output.answer(&(), &ids, || block_table(context, &blocks))?;
            }
        }
        BlockVerb::Log(args) => {
            let lines =
                client.endpoint_verb(&endpoint_of(&args), "block-log", &json!({"block": args.block})).await?;
            output.answer(&json!({"block": args.block, "lines": lines}), &[], || lines.join("\n"))?;
        }
        BlockVerb::Cancel(args) => {
            client.endpoint_verb(&endpoint_of(&args), "cancel-block", &json!({"block": args.block})).await?;
            output.answer(&json!({"block": args.block, "done": "ending"}), &[], || {
                format!("block {} is ending", args.block)
            })?;
        }
    }
    Ok(Exit::Ok)
}
