//! From the command line as given to a request: items are read, the environment is captured, labels are made.
//! Then the job is put to the broker, with its items in pieces when there are many. Used by `submit` and `run`.

use crate::args::WorkArgs;
use crate::args::work::{OnLostArg, RetryOn};
use crate::client::{Again, Body, Client};
use crate::error::{CliError, Result, io_error};
use crate::exit::Exit;
use crate::limits::{ITEM_BYTES_A_REQUEST, ITEMS_INLINE_MAX};
use hyper::Method;
use pf_broker::columns::{TASKS_MEDIA_TYPE, encode_tasks};
use pf_protocol::api::{AppendReply, CancelRequest, SubmitReply, SubmitRequest};
use pf_protocol::job::{After, ArraySpec, Command, Environment, JobSpec, OnLost, Retry};
use pf_protocol::limits::{ARGUMENT_BYTES_MAX, INLINE_BYTES_MAX, JOB_TASKS_MAX, NAME_CHARS_MAX};
use pf_protocol::resources::Resources;
use pf_protocol::{JobId, JobKey};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// A job that is ready to go.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// What is said once.
    pub spec: JobSpec,
    /// How many tasks.
    pub count: u32,
    /// One item a task, if they have items.
    pub items: Option<Vec<String>>,
}

/// What of this process goes into a job.
#[derive(Debug, Clone, Default)]
pub struct Here {
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub cwd: String,
    /// Endpoint of jobs that do not name one.
    pub endpoint: String,
}

impl Here {
    /// This process.
    pub fn new(env: &BTreeMap<String, String>, endpoint: &str) -> Result<Here> {
        let cwd = std::env::current_dir().map_err(|e| io_error("find the current directory", e))?;
        let cwd = cwd.into_os_string().into_string().map_err(|cwd| {
            CliError::usage(format!("the current directory {} is not UTF-8", cwd.display()))
                .hint("go to another one, or give --cwd")
        })?;
        Ok(Here { env: env.clone(), cwd, endpoint: endpoint.into() })
    }
}

/// Resolves the arguments; reads the items.
pub fn resolve(args: &WorkArgs, here: &Here) -> Result<Work> {
    let items = args.each_line.as_deref().map(|file| read_items(file, args.stdin_item)).transpose()?;
    let (array, count, at_once) = match (&args.array, &items) {
        (Some(array), _) => (array.spec.clone(), array.count, array.max_running),
        (None, Some(items)) => (ArraySpec::default(), items.len() as u32, None),
        (None, None) => (ArraySpec::default(), 1, None),
    };
    check_item_use(args)?;
    if let Some(name) = args.name.as_ref().filter(|n| n.chars().count() > NAME_CHARS_MAX) {
        return Err(CliError::usage(format!(
            "a name of {} characters, {NAME_CHARS_MAX} are the limit",
            name.chars().count()
        )));
    }
    let command = Command {
        argv: args.command.clone(),
        cwd: (!args.work_dir)
            .then(|| args.cwd.clone().map_or_else(|| here.cwd.clone(), |cwd| absolute(&cwd, &here.cwd))),
        work_dir: args.work_dir,
        stdout: args.stdout.as_ref().map(|f| absolute(f, &here.cwd)),
        stderr: args.stderr.as_ref().map(|f| absolute(f, &here.cwd)),
        item_on_stdin: args.stdin_item,
    };
    let spec = JobSpec {
        name: args.name.clone(),
        labels: args.label.iter().map(|l| (l.key.clone(), l.value.clone().unwrap_or_default())).collect(),
        endpoints: vec![args.endpoint.clone().unwrap_or_else(|| here.endpoint.clone())],
        account: args.account.clone(),
        max_node_hours_milli: args.max_node_hours,
        body: pf_protocol::job::Body::Command(command),
        env: environment(args, here)?,
        resources: Resources {
            cores: args.cores,
            gpus_milli: args.gpus.unwrap_or(0),
            memory_bytes: args.mem.unwrap_or(0),
            nodes: args.nodes,
            ranks_per_node: args.ranks_per_node,
            ..Resources::default()
        },
        time_limit_ms: args.time_limit,
        time_needed_ms: args.time_needed,
        priority: args.priority,
        max_running: args.max_running.or(at_once),
        max_attempts: args.retries + 1,
        retry: if args.retries == 0 { Retry::default() } else { retry(&args.retry_on) },
        on_lost: match args.on_lost {
            OnLostArg::Rerun => OnLost::Rerun,
            OnLostArg::Fail => OnLost::Fail,
            OnLostArg::Wait => OnLost::Wait,
        },
        warn_signal: args.warn_signal,
        retention_s: args.keep_for.map(|ms| ms.div_ceil(1_000)),
        after: args.after.iter().map(|a| After { job: a.job, ok: !a.any }).collect(),
        max_fails: args.max_fails,
        array,
        ..JobSpec::default()
    };
    Ok(Work { spec, count, items })
}

fn retry(causes: &[RetryOn]) -> Retry {
    Retry {
        failure: causes.contains(&RetryOn::Failure),
        out_of_memory: causes.contains(&RetryOn::Oom),
        time_limit: causes.contains(&RetryOn::TimeLimit),
    }
}

/// `{item}` without items would be passed on as it is, which nobody wants.
fn check_item_use(args: &WorkArgs) -> Result<()> {
    let values = args.env.iter().filter_map(|pair| pair.value.as_ref());
    let texts = args.command.iter().chain(&args.cwd).chain(&args.stdout).chain(&args.stderr).chain(values);
    if args.each_line.is_none() && texts.clone().any(|t| t.contains("{item}")) {
        return Err(
            CliError::usage("{item} is used, but there are no items").hint("give them by --each-line FILE")
        );
    }
    Ok(())
}

fn absolute(path: &str, cwd: &str) -> String {
    Path::new(cwd).join(path).to_string_lossy().into_owned()
}

fn environment(args: &WorkArgs, here: &Here) -> Result<Environment> {
    let mut env = Environment { vars: BTreeMap::new(), clear: args.env_all };
    if args.env_all {
        env.vars = here.env.clone();
    }
    for pair in &args.env {
        let value = match &pair.value {
            Some(value) => value.clone(),
            None => here.env.get(&pair.key).cloned().ok_or_else(|| {
                CliError::usage(format!("--env {}: it is not set here", pair.key))
                    .hint(format!("write --env {}=VALUE", pair.key))
            })?,
        };
        env.vars.insert(pair.key.clone(), value);
    }
    Ok(env)
}

/// Lines of a file or of standard input. A last line without an end counts, an empty file is an error.
fn read_items(path: &Path, on_stdin: bool) -> Result<Vec<String>> {
    let shown = if path == Path::new("-") { "standard input".into() } else { path.display().to_string() };
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|mut f| f.read_to_end(&mut bytes))
    };
    read.map_err(|e| {
        let mut error = io_error(format!("read items from {shown}"), e);
        error.exit = Exit::Usage;
        error
    })?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        CliError::usage(format!("{shown}, line {line}: not UTF-8"))
    })?;
    let items: Vec<String> = text.lines().map(str::to_owned).collect();
    if items.is_empty() {
        return Err(CliError::usage(format!("{shown} has no lines, so there are no tasks")));
    }
    if items.len() > JOB_TASKS_MAX as usize {
        return Err(CliError::usage(format!(
            "{shown} has {} lines, the limit of one job is {JOB_TASKS_MAX}",
            items.len()
        )));
    }
    let (bytes_max, of) = if on_stdin {
        (INLINE_BYTES_MAX, "an item")
    } else {
        (ARGUMENT_BYTES_MAX, "an argument of a command")
    };
    for (line, item) in (1..).zip(&items) {
        if item.len() > bytes_max {
            let message =
                format!("{shown}, line {line}: {} bytes, {of} may have {bytes_max} bytes", item.len());
            return Err(CliError::usage(message).hint("write what is long into files and pass their paths"));
        }
        if !on_stdin && item.contains('\0') {
            let message = format!("{shown}, line {line}: it has a zero byte, which no argument can have");
            return Err(CliError::usage(message).hint("feed items to standard input: --stdin-item"));
        }
    }
    Ok(items)
}

/// A new key: 128 random bits, so that a request which is sent twice is one job.
pub fn new_key() -> Result<JobKey> {
    let mut key = [0u8; 16];
    getrandom::fill(&mut key)
        .map_err(|e| CliError::internal("get random bytes from the system").because(e.to_string()))?;
    Ok(JobKey(key))
}

/// Puts the job to the broker.
pub async fn send(client: &Client, work: Work) -> Result<SubmitReply> {
    let path = format!("/v1/jobs/{}", new_key()?);
    let Work { spec, count, items } = work;
    let small = |items: &Vec<String>| {
        items.len() <= ITEMS_INLINE_MAX
            && items.iter().map(String::len).sum::<usize>() <= ITEM_BYTES_A_REQUEST
    };
    if items.as_ref().is_none_or(small) {
        let request = SubmitRequest { spec, count, items, open: false };
        return client.call(Method::PUT, &path, Body::json(&request)?, Again::Yes).await;
    }
    let request = SubmitRequest { spec, count: 0, items: None, open: true };
    let mut reply: SubmitReply = client.call(Method::PUT, &path, Body::json(&request)?, Again::Yes).await?;
    let all = items.unwrap_or_default();
    let sent = tokio::select! {
        sent = append_all(client, reply.job, &all) => sent,
        stopped = tokio::signal::ctrl_c() => match stopped {
            Ok(()) => Err(CliError::new(Exit::Interrupted, "interrupted")),
            Err(error) => Err(io_error("watch for Ctrl-C", error)),
        },
    };
    match sent {
        Ok(tasks) => reply.tasks = tasks,
        Err(error) => return Err(taken_back(client, reply.job, error).await),
    }
    Ok(reply)
}

/// Appends all items, then says that no more come; answers how many tasks the job has.
async fn append_all(client: &Client, job: JobId, all: &[String]) -> Result<u32> {
    let mut first = 0;
    while first < all.len() {
        let piece = &all[first..first + piece_len(&all[first..])];
        let lens: Vec<u32> = piece.iter().map(|i| i.len() as u32).collect();
        let bytes = encode_tasks(piece.len() as u32, &lens, piece.concat().as_bytes());
        let body = Body { media_type: TASKS_MEDIA_TYPE, bytes, headers: Vec::new() };
        let to = format!("/v1/jobs/{job}/tasks?first={first}");
        client.call::<AppendReply>(Method::POST, &to, body, Again::Yes).await?;
        first += piece.len();
    }
    let (to, nothing) = (format!("/v1/jobs/{job}/close"), Body::json(&serde_json::json!({}))?);
    let closed: AppendReply = client.call(Method::POST, &to, nothing, Again::Yes).await?;
    Ok(closed.tasks)
}

/// Cancels a job that did not get all of its tasks, which would wait for the others for ever; answers why it did not, and what became of it.
async fn taken_back(client: &Client, job: JobId, why: CliError) -> CliError {
    let all = CancelRequest { kill: true, ..CancelRequest::default() };
    match client.cancel(job, &all).await {
        Ok(_) => why.also(&format!("job {job}, which had not all of its tasks, is cancelled")),
        Err(_) => why
            .also(&format!("job {job} has not all of its tasks and is left open: `pf cancel {job}` ends it")),
    }
}

/// How many of the next items go into one append: at least one.
fn piece_len(items: &[String]) -> usize {
    let mut bytes = 0;
    let fits = items.iter().take(pf_protocol::limits::APPEND_TASKS_MAX as usize).take_while(|item| {
        bytes += item.len() + 4;
        bytes <= ITEM_BYTES_A_REQUEST
    });
    fits.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Verb};
    use clap::Parser;

    fn work(args: &[&str]) -> Result<Work> {
        let cli = Cli::try_parse_from([&["pf", "submit"], args].concat()).expect("arguments");
        let Verb::Submit(args) = cli.verb else { panic!("submit") };
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2".to_owned())]);
        resolve(&args, &Here { env, cwd: "/here".into(), endpoint: "local".into() })
    }

    #[test]
    fn arguments_become_a_job() {
        let made = work(&[
            "--array",
            "1-9:4%2",
            "--env",
            "A",
            "--env",
            "C=x=y",
            "--cores",
            "2",
            "--gpus",
            "0.5",
            "--mem",
            "1G",
            "--time-limit",
            "90s",
            "--retries",
            "2",
            "--retry-on",
            "failure,oom",
            "--after",
            "j3:any",
            "-l",
            "p=q",
            "--stdout",
            "out/{index}",
            "--priority",
            "-3",
            "--",
            "x",
            "--flag",
            "{index}",
        ])
        .expect("resolve");
        assert_eq!((made.count, made.spec.max_running, made.spec.array.label(2)), (3, Some(2), 9));
        assert_eq!(
            made.spec.env.vars,
            BTreeMap::from([("A".into(), "1".into()), ("C".into(), "x=y".into())])
        );
        assert!(!made.spec.env.clear);
        assert_eq!(
            (made.spec.resources.cores, made.spec.resources.gpus_milli, made.spec.resources.memory_bytes),
            (2, 500, 1 << 30)
        );
        assert_eq!(
            (made.spec.max_attempts, made.spec.retry),
            (3, Retry { failure: true, out_of_memory: true, time_limit: false })
        );
        assert_eq!(made.spec.after, [After { job: pf_protocol::JobId(3), ok: false }]);
        assert_eq!((made.spec.time_limit_ms, made.spec.priority), (Some(90_000), -3));
        let pf_protocol::job::Body::Command(command) = made.spec.body else { panic!("command") };
        assert_eq!(command.argv, ["x", "--flag", "{index}"]);
        assert_eq!(
            (command.cwd.as_deref(), command.stdout.as_deref()),
            (Some("/here"), Some("/here/out/{index}"))
        );
    }

    #[test]
    fn nothing_is_retried_and_little_is_captured_unless_asked() {
        let made = work(&["true"]).expect("resolve");
        assert_eq!((made.count, made.spec.max_attempts, made.spec.retry), (1, 1, Retry::default()));
        assert!(made.spec.env.vars.is_empty() && !made.spec.env.clear);
        let all = work(&["--env-all", "true"]).expect("resolve");
        assert_eq!((all.spec.env.vars.len(), all.spec.env.clear), (2, true));
    }

    #[test]
    fn items_come_from_lines() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("items");
        let path = file.to_str().expect("utf-8");
        std::fs::write(&file, "a b\n\nc").expect("write");
        let made = work(&["--each-line", path, "x", "{item}"]).expect("resolve");
        assert_eq!((made.count, made.items), (3, Some(vec!["a b".into(), String::new(), "c".into()])));
        std::fs::write(&file, "").expect("write");
        assert!(
            work(&["--each-line", path, "x"])
                .unwrap_err()
                .to_string()
                .ends_with("has no lines, so there are no tasks")
        );
        std::fs::write(&file, b"a\n\xff").expect("write");
        assert!(work(&["--each-line", path, "x"]).unwrap_err().to_string().ends_with("line 2: not UTF-8"));
        std::fs::write(&file, format!("a\r\n\"b\" é\r\n{}", "x".repeat(131_071))).expect("write");
        let made = work(&["--each-line", path, "x", "{item}"]).expect("resolve").items.expect("items");
        assert_eq!((made[0].as_str(), made[1].as_str(), made[2].len()), ("a", "\"b\" é", 131_071));
        std::fs::write(&file, format!("a\n{}", "x".repeat(131_072))).expect("write");
        let long = work(&["--each-line", path, "x", "{item}"]).unwrap_err().to_string();
        assert!(
            long.ends_with("line 2: 131072 bytes, an argument of a command may have 131071 bytes"),
            "{long}"
        );
        assert_eq!(work(&["--each-line", path, "--stdin-item", "x"]).expect("resolve").count, 2);
        std::fs::write(&file, b"a\nb\0").expect("write");
        let zero = work(&["--each-line", path, "x", "{item}"]).unwrap_err().to_string();
        assert!(zero.ends_with("line 2: it has a zero byte, which no argument can have"), "{zero}");
        assert_eq!(work(&["--each-line", path, "--stdin-item", "x"]).expect("resolve").count, 2);
        assert!(work(&["--env", "X={item}", "x"]).is_err());
        assert_eq!(work(&["x", "{item}"]).unwrap_err().to_string(), "{item} is used, but there are no items");
        assert_eq!(work(&["--env", "NOPE", "x"]).unwrap_err().to_string(), "--env NOPE: it is not set here");
    }

    #[test]
    fn appends_are_bounded_in_bytes() {
        let items = vec!["x".repeat(1 << 20); 40];
        assert_eq!(piece_len(&items), 15);
        assert_eq!(piece_len(&["x".repeat(64 << 20)]), 1);
    }
}
