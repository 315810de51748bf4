//! `broker ..` and `relay ..`: the daemon of this host. Verbs that need a broker start it here when nobody answers.

use super::chain::{Chain, Kind};
use super::manage::broker_words;
use crate::Context;
use crate::args::{BrokerVerb, RelayVerb, TokenVerb};
use crate::client::{Again, Body, Client, escape};
use crate::error::{CliError, Result, io_error};
use crate::exit::Exit;
use crate::limits::{LOG_TAIL_LINES, POLL_EVERY, START_TIMEOUT, STOP_TIMEOUT};
use hyper::Method;
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use serde_json::json;
use std::fs::OpenOptions;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use tokio::signal::unix::{SignalKind, signal};

/// A client of the configured broker; this host's own is started if it does not answer.
pub async fn client(context: &Context) -> Result<Client> {
    let client = Client::new(&context.config)?;
    if client.is_local() && !client.is_there().await {
        start(context, &client).await?;
    }
    Ok(client)
}

/// Starts the daemon and waits until it answers.
async fn start(context: &Context, client: &Client) -> Result<()> {
    let places = &context.config.places;
    places.prepare()?;
    // One starter at a time: a second one finds the broker of the first.
    let lock_path = places.local.join("start.lock");
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
    let lock = lock.map_err(|e| io_error(format!("open {}", lock_path.display()), e))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, errno)| io_error(format!("lock {}", lock_path.display()), errno.into()))?;
    if client.is_there().await {
        return Ok(());
    }
    let log_path = places.daemon_log();
    let mut daemon = spawn(context, &log_path)?;
    let give_up = Instant::now() + START_TIMEOUT;
    while !client.is_there().await {
        if let Some(status) = daemon.try_wait().map_err(|e| io_error("look after the broker", e))? {
            return Err(CliError::internal(format!("the broker did not start ({status})"))
                .because(tail(&log_path))
                .hint(format!("its log is {}", log_path.display())));
        }
        if Instant::now() > give_up {
            let error =
                CliError::internal(format!("the broker does not answer after {} s", START_TIMEOUT.as_secs()));
            return Err(error.because(tail(&log_path)).hint(format!(
                "its log is {}; it is pid {}",
                log_path.display(),
                daemon.id()
            )));
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    context.output.say(format!("started a broker (pid {}, log {})", daemon.id(), log_path.display()));
    warn_of_login_rules(context);
    Ok(())
}

/// Lets a daemon that runs here read its configuration again: by a restart, over which jobs and blocks live on. Whether one runs here.
pub async fn restart(context: &Context) -> Result<bool> {
    let client = Client::socket(&context.config.places.socket());
    if !client.is_there().await {
        return Ok(false);
    }
    let pid = client.status().await?.pid;
    client.shutdown(STOP_TIMEOUT).await?;
    wait_for_end(pid).await?;
    start(context, &client).await?;
    Ok(true)
}

/// Keeps what the caller of `pf` has left open (a lock's file, a pipe of `make`) from the daemon, which would hold it for days.
fn keep_from_daemon() {
    // Without /proc it cannot be known what there is.
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers = open.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for number in numbers.filter(|number| *number > 2).collect::<Vec<_>>() {
        // SAFETY: the number goes to fcntl(2) alone, which says so if it is closed by now, as that of the listing is.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
}

/// This binary again, in a session of its own, with nothing of ours or our caller's open.
fn spawn(context: &Context, log_path: &Path) -> Result<Child> {
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(log_path);
    let log = log.map_err(|e| io_error(format!("open the broker's log {}", log_path.display()), e))?;
    let both = log.try_clone().map_err(|e| io_error("open the broker's log twice", e))?;
    let me = std::env::current_exe().map_err(|e| io_error("find the program pf", e))?;
    let mut command = Command::new(&me);
    if let Some(file) = &context.config_flag {
        let file = std::path::absolute(file).map_err(|e| io_error(format!("find {}", file.display()), e))?;
        command.arg("--config").arg(file);
    }
    command
        .args(["broker", "run", "--detach"])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(both);
    keep_from_daemon();
    command.spawn().map_err(|e| io_error(format!("start {}", me.display()), e))
}

/// The last lines of the daemon's log: what it said before it ended.
fn tail(path: &Path) -> String {
    let text = std::fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n    ")
}

/// Says which rules of this login node would end or hinder the daemon.
pub fn warn_of_login_rules(context: &Context) {
    let user = context.surroundings.var("USER").unwrap_or("USER");
    let profiles = &context.config.settings.profiles;
    let centre = profiles.values().filter_map(|found| crate::login::policy(&found.name, &found.profile));
    let rules = crate::login::System::here(user).rules().into_iter().filter(|r| r.ends).chain(centre);
    for rule in rules {
        context.output.say(format!("warning: {}. {}", rule.words, rule.hint));
    }
}

/// `pf broker ..`.
pub async fn broker(context: &Context, verb: BrokerVerb) -> Result<Exit> {
    let output = &context.output;
    match verb {
        BrokerVerb::Start => {
            let client = Client::new(&context.config)?;
            if !client.is_local() {
                return Err(elsewhere(context));
            }
            if client.is_there().await {
                output.say("a broker answers already");
            } else {
                start(context, &client).await?;
            }
            let status = client.status().await?;
            output.answer(&status, &[status.pid.to_string()], || broker_words(&status))?;
        }
        BrokerVerb::Run { detach } => return run(context, detach).await,
        BrokerVerb::Stop => {
            let client = Client::new(&context.config)?;
            if !client.is_there().await {
                output.say("no broker answers");
                return ended(context);
            }
            let pid = client.status().await?.pid;
            client.shutdown(STOP_TIMEOUT).await?;
            if client.is_local() {
                wait_for_end(pid).await?;
            }
            output.say("the broker has ended");
            return ended(context);
        }
        BrokerVerb::Status => {
            // Asking for the state of a broker is no reason to start one.
            let status = Client::new(&context.config)?.status().await?;
            output.answer(&status, &[status.pid.to_string()], || broker_words(&status))?;
        }
        BrokerVerb::Token(verb) => token(context, verb).await?,
        BrokerVerb::Key => {
            let key = super::chain::broker_key(&context.config)?;
            output.answer(&json!({"key": key}), std::slice::from_ref(&key), || key.clone())?;
        }
        BrokerVerb::Cert => {
            let certificate = super::chain::certificate(&context.config)?;
            if output.json {
                output.json(&json!({"certificate": certificate}))?;
            } else {
                output.bytes(certificate.as_bytes())?;
            }
        }
    }
    Ok(Exit::Ok)
}

/// There is no broker any more: talk for people, data for programs.
fn ended(context: &Context) -> Result<Exit> {
    if context.output.json {
        context.output.json(&json!({"running": false}))?;
    }
    Ok(Exit::Ok)
}

/// Waits for the end of a process of this host that answers no more: until then it still closes its log.
async fn wait_for_end(pid: u32) -> Result<()> {
    let give_up = Instant::now() + STOP_TIMEOUT;
    // The command line of a process that has ended, but was not waited for, is empty.
    while std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()) {
        if Instant::now() > give_up {
            return Err(CliError::internal(format!(
                "the broker (pid {pid}) answers no more, but does not end"
            ))
            .hint("see its log"));
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    Ok(())
}

fn elsewhere(context: &Context) -> CliError {
    let address = context.config.broker.address.clone().unwrap_or_default();
    CliError::new(Exit::Refused, format!("the broker is {address}, on another host"))
        .hint("start it there, or unset broker.address")
}

/// The daemon itself, until it is told to end.
async fn run(context: &Context, detach: bool) -> Result<Exit> {
    if context.config.broker.address.is_some() {
        return Err(elsewhere(context));
    }
    if detach {
        nix::unistd::setsid().map_err(|e| CliError::internal("begin a session").because(e))?;
    }
    context.config.places.prepare()?;
    let mut terminated = signal(SignalKind::terminate()).map_err(|e| io_error("watch for SIGTERM", e))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(|e| io_error("watch for SIGHUP", e))?;
    let mut chain = Chain::start(&context.config, Kind::Daemon)?;
    context.output.say(format!("the broker serves {}", chain.socket().display()));
    loop {
        tokio::select! {
            () = chain.ended() => break,
            _ = terminated.recv() => break,
            // The end of a login session; the daemon has nothing to do with it.
            _ = hangup.recv() => {}
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    chain.stop().await?;
    context.output.say("the broker has ended");
    Ok(Exit::Ok)
}

async fn token(context: &Context, verb: TokenVerb) -> Result<()> {
    let client = client(context).await?;
    let output = &context.output;
    match verb {
        TokenVerb::Add { name } => {
            let answer: serde_json::Value = client
                .call(Method::POST, "/v1/tokens", Body::json(&json!({"name": name}))?, Again::No)
                .await?;
            let token = answer.get("token").and_then(|t| t.as_str()).unwrap_or_default().to_owned();
            output.say("keep it in a 0600 file; it is not shown again");
            output.answer(&answer, std::slice::from_ref(&token), || token.clone())
        }
        TokenVerb::List => {
            let answer: serde_json::Value = client.get("/v1/tokens").await?;
            let tokens = answer.get("tokens").and_then(|t| t.as_array()).cloned().unwrap_or_default();
            let name = |t: &serde_json::Value| {
                t.get("name").and_then(|n| n.as_str()).or_else(|| t.as_str()).unwrap_or_default().to_owned()
            };
            let names: Vec<String> = tokens.iter().map(name).collect();
            output.answer(&answer, &names, || names.join("\n"))
        }
        TokenVerb::Revoke { name } => {
            let path = format!("/v1/tokens/{}", escape(&name));
            client.call::<serde_json::Value>(Method::DELETE, &path, Body::default(), Again::Yes).await?;
            output.answer(&json!({"revoked": name}), &[], || format!("token {name} is worth nothing now"))
        }
    }
}

/// `pf relay ..`.
pub async fn relay(context: &Context, verb: RelayVerb) -> Result<Exit> {
    match verb {
        RelayVerb::Key { endpoint } => {
            let key = super::chain::relay_key(&context.config, &endpoint)?;
            context.output.answer(
                &json!({"endpoint": endpoint, "key": key}),
                std::slice::from_ref(&key),
                || key.clone(),
            )?;
        }
        RelayVerb::Run(args) => super::chain::run_relay(context, &args).await?,
    }
    Ok(Exit::Ok)
}
