//! The login node's side of a probe: submits a block whose pilot is [`probe`](super::probe), waits for what it saw, and judges it.

use super::compare::Finding;
use super::probe::{self, Request, Seen, marker};
use crate::Context;
use crate::config::{EndpointConfig, Places};
use crate::error::{CliError, Result, io_error};
use crate::exit::Exit;
use crate::limits::{PROBE_END, PROBE_END_LOOK, PROBE_LOOK, PROBE_TAIL_BYTES, PROBE_WALLTIME_MS, PROBE_WORD};
use pf_protocol::report::{BlockEnd, BlockState};
use pf_providers::script::END;
use pf_providers::{BlockRequest, KnownBlock, Observed, Plan, Provider, ProviderConfig, supervisor};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Files that a probe leaves in places, and its folder: gone when it is over, however it ends.
struct Traces {
    dir: PathBuf,
    files: Vec<PathBuf>,
}

impl Drop for Traces {
    fn drop(&mut self) {
        // What is left is a small file with a name that says what it was.
        self.files.iter().for_each(|file| drop(std::fs::remove_file(file)));
        let _ = std::fs::remove_dir_all(&self.dir);
        // Only if no other probe is in it.
        if let Some(parent) = self.dir.parent() {
            let _ = std::fs::remove_dir(parent);
        }
    }
}

/// Submits one block for `endpoint`, and says what it saw.
pub async fn probe(
    context: &Context,
    endpoint: &EndpointConfig,
    timeout_ms: u64,
) -> Result<(Vec<Finding>, Seen)> {
    let places = &context.config.places;
    places.prepare()?;
    let program = std::env::current_exe().map_err(|e| io_error("find the program pf", e))?;
    let provider = provider(endpoint, &program)?;
    let nonce = nonce()?;
    let name = format!("pf-probe-{nonce}");
    let dir = places.shared.join("probes").join(&name);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|e| io_error(format!("make {}", dir.display()), e))?;
    let mut traces = Traces { dir: dir.clone(), files: Vec::new() };
    let addresses = listen(endpoint, &nonce)?;
    let by_name = by_name(places);
    for (_, place) in &by_name {
        traces.files.extend([marker(place, &nonce, "login"), marker(place, &nonce, "node")]);
        std::fs::write(marker(place, &nonce, "login"), &nonce)
            .map_err(|e| io_error(format!("write to {}", place.display()), e))?;
    }
    let request = Request {
        nonce: nonce.clone(),
        places: by_name.iter().map(|(name, place)| ((*name).to_owned(), place.to_path_buf())).collect(),
        addresses,
        python: endpoint.python.clone(),
    };
    probe::write(&dir.join(probe::REQUEST), &request)?;
    let block = submit(provider.as_ref(), endpoint, &dir, &name, &program)?;
    context
        .output
        .say(format!("submitted {} ({name}); it may wait in the queue", block.id.as_deref().unwrap_or("")));
    let waited = wait(context, provider.as_ref(), &block, Duration::from_millis(timeout_ms)).await;
    if waited.is_err() || !is_over(provider.as_ref(), &block).await {
        give_up(context, provider.as_ref(), &block);
    }
    let left = waited?;
    let seen: Seen = probe::read(&dir.join(probe::SEEN))?;
    Ok((judge(&seen, &request, &nonce, left), seen))
}

fn by_name(places: &Places) -> [(&'static str, &Path); 4] {
    [
        ("durable", &places.durable),
        ("shared", &places.shared),
        ("local", &places.local),
        ("output", &places.output),
    ]
    .map(|(name, path)| (name, path.as_path()))
}

fn provider(endpoint: &EndpointConfig, program: &Path) -> Result<Box<dyn Provider>> {
    let config = ProviderConfig {
        name: endpoint.provider.clone(),
        dialect: endpoint.dialect.clone(),
        program: program.display().to_string(),
        user: crate::verbs::chain::user_name(),
        ends_with: None,
    };
    pf_providers::provider(&config)
        .map_err(|e| CliError::usage(format!("endpoint {}", endpoint.name)).because(e))
}

fn nonce() -> Result<String> {
    let mut bytes = [0u8; 6];
    getrandom::fill(&mut bytes).map_err(|e| CliError::internal(format!("draw a random name: {e}")))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Listens where the endpoint's relay would, on any free port (or one of its own); each connection hears the nonce. The threads end with `pf`.
fn listen(endpoint: &EndpointConfig, nonce: &str) -> Result<Vec<SocketAddr>> {
    let mut found = Vec::new();
    for address in crate::verbs::chain::listen_for_managers(endpoint)? {
        let ip: std::net::IpAddr =
            address.parse().map_err(|_| CliError::usage(format!("{address:?} is no address")))?;
        let (first, last) = endpoint.ports.unwrap_or((0, 0));
        let listener = (first..=last).find_map(|port| TcpListener::bind((ip, port)).ok());
        let listener = listener.ok_or_else(|| {
            CliError::usage(format!("no port of {first}-{last} is free at {address}"))
                .hint(format!("set endpoints.{}.ports", endpoint.name))
        })?;
        found.push(listener.local_addr().map_err(|e| io_error(format!("listen at {address}"), e))?);
        let nonce = nonce.to_owned();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // Whoever does not read it is not our probe.
                let _ = stream.write_all(nonce.as_bytes());
            }
        });
    }
    Ok(found)
}

fn submit(
    provider: &dyn Provider,
    endpoint: &EndpointConfig,
    dir: &Path,
    name: &str,
    program: &Path,
) -> Result<KnownBlock> {
    // The first is the one that is tried first.
    let shape = endpoint.shapes.first().ok_or_else(|| CliError::internal("an endpoint without a shape"))?;
    let wrapper = dir.join("probe.sh");
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    // Whatever arguments a pilot gets, this one looks around and ends.
    script(&wrapper, &format!("#!/bin/sh\nexec {} site probe {}\n", quoted(program), quoted(dir)))?;
    let request = BlockRequest {
        name: name.into(),
        dir: dir.display().to_string(),
        program: wrapper.display().to_string(),
        nodes: 1,
        walltime_ms: shape.walltime_ms.min(PROBE_WALLTIME_MS),
        exclude: Vec::new(),
        asks: shape.asks.clone(),
    };
    let failed =
        |e| CliError::new(Exit::Refused, format!("submit a probe to {}", endpoint.provider)).because(e);
    let plan = provider.submit(&request).map_err(failed)?;
    let id = provider.submitted(&run(&plan, dir)?).map_err(failed)?;
    Ok(KnownBlock { name: name.into(), id: Some(id), dir: dir.display().to_string() })
}

fn script(path: &Path, text: &str) -> Result<()> {
    let write = || {
        std::fs::write(path, text)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
    };
    write().map_err(|e| io_error(format!("write {}", path.display()), e))
}

fn run(plan: &Plan, dir: &Path) -> Result<pf_providers::Output> {
    let path = plan.script.as_ref().map(|(name, text)| (dir.join(name), text));
    if let Some((path, text)) = &path {
        script(path, text)?;
    }
    let stdin = path.filter(|_| plan.script_on_stdin).map(|(path, _)| path);
    pf_relay::command::run(plan, stdin.as_deref())
        .map_err(|e| CliError::internal("run the scheduler's command").because(e))
}

/// Waits for the probe's word, and lets it end. Gives the walltime that the scheduler showed meanwhile.
async fn wait(
    context: &Context,
    provider: &dyn Provider,
    block: &KnownBlock,
    timeout: Duration,
) -> Result<Option<u64>> {
    let dir = Path::new(&block.dir);
    let give_up = Instant::now() + timeout;
    let poll = Duration::from_millis(provider.poll_ms());
    let (mut asked, mut left, mut state) = (Instant::now(), None, BlockState::Intended);
    // When the block was over, and how long its word may still take to come here.
    let mut over: Option<(Instant, Duration)> = None;
    loop {
        if dir.join(probe::SEEN).exists() {
            left = look(provider, block).and_then(|observed| observed.walltime_left_ms).or(left);
            return probe::let_end(dir).map(|()| left);
        }
        if over.is_some_and(|(at, grace)| at.elapsed() > grace) {
            return Err(no_word(dir, &state));
        }
        if let Some(end) = written_end(dir).filter(|_| over.is_none()) {
            (over, state) = (Some((Instant::now(), PROBE_WORD)), BlockState::Ended(end));
        }
        if Instant::now() > give_up {
            return Err(CliError::new(
                Exit::TimedOut,
                format!("the probe did not run within {} s ({state:?})", timeout.as_secs()),
            )
            .hint("wait longer with --timeout, or choose a queue that starts sooner"));
        }
        if asked.elapsed() > poll && over.is_none() {
            asked = Instant::now();
            // A status that fails is asked again: the scheduler may be busy.
            if let Some(observed) = look(provider, block) {
                left = observed.walltime_left_ms.or(left);
                if observed.state != state {
                    context.output.say(format!("the probe is {:?}", observed.state));
                }
                state = observed.state;
                over = matches!(state, BlockState::Ended(_)).then(|| (Instant::now(), poll.max(PROBE_WORD)));
                if let BlockState::Impossible(words) = &state {
                    return Err(CliError::new(Exit::Refused, "the scheduler will never run the probe")
                        .because(words.clone()));
                }
            }
        }
        tokio::time::sleep(PROBE_LOOK).await;
    }
}

/// How the block's script ended, as its supervisor wrote.
fn written_end(dir: &Path) -> Option<BlockEnd> {
    supervisor::end(&std::fs::read_to_string(dir.join(END)).ok()?)
}

fn no_word(dir: &Path, state: &BlockState) -> CliError {
    let words = tail(dir);
    CliError::new(Exit::TasksFailed, format!("the probe ended without a word ({state:?})"))
        .because(if words.is_empty() { "it printed nothing".to_owned() } else { words })
        .hint("see what the scheduler says of the job")
}

/// Waits a little until the scheduler calls the block over: its folder is needed until then. One that the scheduler has forgotten is over when its script is.
async fn is_over(provider: &dyn Provider, block: &KnownBlock) -> bool {
    let until = Instant::now() + PROBE_END;
    loop {
        match look(provider, block).map(|observed| observed.state) {
            Some(BlockState::Ended(_)) => return true,
            None if Path::new(&block.dir).join(END).exists() => return true,
            _ if Instant::now() > until => return false,
            _ => tokio::time::sleep(PROBE_END_LOOK).await,
        }
    }
}

/// What the scheduler says of the block: by status, else by lookup.
fn look(provider: &dyn Provider, block: &KnownBlock) -> Option<Observed> {
    let dir = Path::new(&block.dir);
    let listed = provider.observed(&run(&provider.status(std::slice::from_ref(block)), dir).ok()?).ok()?;
    if let Some(found) = listed.into_iter().find(|o| Some(&o.id) == block.id.as_ref() || o.name == block.name)
    {
        return Some(found);
    }
    let plans = provider.lookup(block).into_iter().enumerate();
    plans
        .map(|(step, plan)| provider.looked_up(block, step, &run(&plan, dir).ok()?).ok().flatten())
        .find_map(|found| found)
}

/// Ends a block that nobody waits for any more.
fn give_up(context: &Context, provider: &dyn Provider, block: &KnownBlock) {
    let cancelled = provider.cancel(block, 0).map_err(|e| e.to_string()).and_then(|plan| {
        let output = run(&plan, Path::new(&block.dir)).map_err(|e| e.to_string())?;
        provider.cancelled(&output).map_err(|e| e.to_string())
    });
    if let Err(words) = cancelled {
        context.output.say(format!(
            "warning: the probe {} could not be cancelled: {words}",
            block.id.as_deref().unwrap_or(&block.name)
        ));
    }
}

/// The end of what the block printed.
fn tail(dir: &Path) -> String {
    let read = |name: &str| -> std::io::Result<String> {
        let mut file = std::fs::File::open(dir.join(name))?;
        let from = file.metadata()?.len().saturating_sub(PROBE_TAIL_BYTES);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(PROBE_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    ["pilot.log", "block.log"]
        .iter()
        .filter_map(|name| read(name).ok())
        .filter(|t| !t.is_empty())
        .collect::<Vec<_>>()
        .join("\n")
}

/// What the node saw, judged.
fn judge(seen: &Seen, request: &Request, nonce: &str, left_ms: Option<u64>) -> Vec<Finding> {
    let about = format!("node {}", seen.host);
    let gpus = if seen.gpus.is_empty() {
        "no GPUs".to_owned()
    } else {
        format!("{} GPUs ({})", seen.gpus.len(), seen.gpus[0])
    };
    let mut findings = vec![Finding::ok(
        &about,
        format!(
            "{} cores, {} threads, {} GiB, {gpus}, {}",
            seen.cores,
            seen.threads,
            seen.memory_bytes >> 30,
            seen.libc
        ),
    )];
    findings.push(reachability(seen));
    for (name, place) in &seen.places {
        let back = request.places.get(name).is_some_and(|path| {
            std::fs::read_to_string(marker(path, nonce, "node")).is_ok_and(|t| t == nonce)
        });
        findings.push(place_finding(name, place.visible && back, place.writable));
    }
    findings.push(match &seen.python {
        Ok(words) => Finding::ok("python", format!("on the node: {words}")),
        Err(words) => Finding::warning(
            "python",
            format!("on the node {} does not run: {words}", request.python),
            "set python, or load it in setup",
        ),
    });
    let tmpdir = seen.tmpdir.display();
    findings.push(if seen.tmpdir_writable {
        Finding::ok("TMPDIR", format!("{tmpdir} can be written"))
    } else {
        Finding::problem(
            "TMPDIR",
            format!("{tmpdir} cannot be written"),
            "set it in setup: export TMPDIR=/tmp",
        )
    });
    findings.push(Finding::ok("walltime", walltime(seen, left_ms)));
    findings
}

/// What is known of the job's end: by its own variables, and by the scheduler's status while it ran.
fn walltime(seen: &Seen, left_ms: Option<u64>) -> String {
    let mut times: Vec<String> = seen.time.iter().map(|(k, v)| format!("{k}={v}")).collect();
    times.extend(left_ms.map(|ms| format!("the scheduler showed {} s left", ms / 1000)));
    if times.is_empty() {
        "nothing tells when the job ends: the pilot keeps its own clock".into()
    } else {
        times.join(", ")
    }
}

fn reachability(seen: &Seen) -> Finding {
    let (good, bad): (Vec<_>, Vec<_>) = seen.reached.iter().partition(|(_, reached)| reached.is_ok());
    let good: Vec<String> = good.iter().map(|(address, _)| address.ip().to_string()).collect();
    let bad: Vec<String> =
        bad.iter().map(|(a, why)| format!("{} ({})", a.ip(), why.as_ref().err().map_or("", |w| w))).collect();
    let hint = "let interfaces name those that nodes reach";
    match (good.is_empty(), bad.is_empty()) {
        (true, _) => {
            Finding::problem("network", format!("the node reaches none of {}", bad.join(", ")), hint)
        }
        (false, true) => Finding::ok("network", format!("the node reaches {}", good.join(", "))),
        (false, false) => Finding::warning(
            "network",
            format!("the node reaches {}, not {}", good.join(", "), bad.join(", ")),
            hint,
        ),
    }
}

fn place_finding(name: &str, same: bool, writable: bool) -> Finding {
    let about = format!("place {name}");
    match (name, same, writable) {
        // Durable and local need not be seen by nodes.
        ("durable" | "local", true, _) => Finding::ok(&about, "the node sees it"),
        ("durable" | "local", false, _) => Finding::ok(&about, "the node does not see it, and need not"),
        (_, true, true) => Finding::ok(&about, "the node sees it and can write"),
        (_, true, false) => Finding::problem(
            &about,
            "the node sees it and cannot write",
            format!("set places.{name} to a folder that nodes can write"),
        ),
        (_, false, _) => Finding::problem(
            &about,
            "the node does not see it",
            format!("set places.{name} to a folder that all nodes see"),
        ),
    }
}
