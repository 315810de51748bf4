//! A real manager process with real tasks, against a relay that is played here.

mod rig;

use pf_protocol::job::{Body, Command, Function, FunctionKind, JobSpec, Python};
use pf_protocol::message::{CancelAttempts, Drain, Message};
use pf_protocol::outcome::{OutcomeKind, Ran};
use pf_protocol::resources::Resources;
use pf_protocol::{AttemptId, Epoch};
use rig::{Rig, sh};
use std::time::{Duration, Instant};

/// Not a test: the other tests run this binary again with only this one, as their manager.
#[test]
fn the_manager_process() {
    rig::be_manager_if_asked();
}

fn start(slots: u32) -> Rig {
    Rig::start(slots, "python3", &["--exact", "the_manager_process", "--nocapture"])
}

fn first() -> AttemptId {
    AttemptId { epoch: Epoch(1), n: 1 }
}

fn alive(pid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn commands_run_and_tell_how_they_ended() {
    let mut rig = start(2);
    assert_eq!(rig.run(1, sh("exit 0")).kind, OutcomeKind::Value);
    let failed = rig.run(2, sh("echo out; echo 'bad \u{fc}' >&2; printf '\\377' >&2; exit 3"));
    let error = failed.error.unwrap();
    assert_eq!((failed.kind, error.exit), (OutcomeKind::Exit, Some(3)));
    assert_eq!(error.stderr_tail.as_deref(), Some("bad \u{fc}\n\u{fffd}"));
    assert!(failed.usage.unwrap().max_rss_kib > 0);
    assert_eq!(
        rig.output(AttemptId { n: 2, ..first() }).0,
        b"out\n",
        "it is in the log before the outcome is told"
    );
    let killed = rig.run(3, sh("kill -9 $$"));
    assert_eq!((killed.kind, killed.error.unwrap().signal), (OutcomeKind::Signal, Some(9)));
}

#[test]
fn what_cannot_be_started_is_refused_with_a_hint() {
    let mut rig = start(1);
    let argv = |program: &str| Command { argv: vec![program.into()], ..Command::default() };
    let missing = rig.run(1, argv("no-such-program"));
    assert_eq!((missing.kind, missing.ran), (OutcomeKind::Refused, Ran::No));
    assert_eq!(missing.error.unwrap().message, "command not found: no-such-program");
    let cwd = rig.run(2, Command { cwd: Some("/no/such/{index}".into()), ..sh("true") });
    assert_eq!(cwd.error.unwrap().message, "working directory /no/such/1 does not exist");
    assert_eq!(rig.run(3, sh("exit 0")).kind, OutcomeKind::Value, "the slot is free again");
}

#[test]
fn words_in_braces_work_in_argv_env_directories_and_files() {
    let mut rig = start(1);
    let out = rig.dir.path().join("f-{index}-{job}").to_string_lossy().into_owned();
    let script =
        "echo {index} {item} $PF_JOB $PF_INDEX $PF_TASK $PF_ATTEMPT $X; pwd; echo $PF_WORK_DIR; cat >&2";
    let command = Command { work_dir: true, stdout: Some(out), item_on_stdin: true, ..sh(script) };
    let mut spec = JobSpec { body: Body::Command(command), ..JobSpec::default() };
    spec.env.vars.insert("X".into(), "<{index}>".into());
    spec.array.first = 7;
    assert_eq!(rig.run_spec(1, spec).kind, OutcomeKind::Value);
    let text = std::fs::read_to_string(rig.dir.path().join("f-7-j1")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "7 j1 7 j1.7 1.1 <7>");
    assert_eq!(lines[1], lines[2]);
    assert!(lines[1].ends_with("/work/j1/7-1.1"));
    assert_eq!(rig.output(first()).1, b"item");
}

#[test]
fn a_task_is_bound_to_the_cpus_of_its_slot() {
    let mut rig = start(1);
    let script = "echo $PF_CPUS; grep Cpus_allowed_list /proc/self/status | cut -f2";
    assert_eq!(rig.run(1, sh(script)).kind, OutcomeKind::Value);
    let (stdout, _) = rig.output(first());
    let text = String::from_utf8(stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(!lines[0].is_empty());
    assert_eq!(lines[0], lines[1], "what the kernel says");
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    assert!(own == lines[0] || std::thread::available_parallelism().unwrap().get() > 1);
}

#[test]
fn more_slots_than_cpus_are_not_bound() {
    let mut rig = start(4_096);
    assert_eq!(rig.run(1, sh("echo ${PF_CPUS:-none}")).kind, OutcomeKind::Value);
    assert_eq!(rig.output(first()).0, b"none\n");
}

#[test]
fn output_without_end_is_cut_and_read_all_the_same() {
    let mut rig = start(1);
    let outcome = rig.run(1, sh("head -c 12000000 /dev/zero | tr '\\0' 'x'; seq 1 10000 >&2"));
    assert_eq!(outcome.kind, OutcomeKind::Value);
    let (stdout, stderr) = rig.output(first());
    assert_eq!(stdout.len(), 4 << 20);
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(stderr.contains("standard output is cut here") && stderr.contains("\n10000\n"));
}

#[test]
fn nothing_of_a_task_stays_behind() {
    let mut rig = start(1);
    // One child in the task's group, one that left it.
    let script = "sleep 1000 & echo $!; setsid sh -c 'sleep 1000 & echo $!; wait' & echo $!; sleep 0.2";
    assert_eq!(rig.run(1, sh(script)).kind, OutcomeKind::Value);
    let text = String::from_utf8(rig.output(first()).0).unwrap();
    let pids: Vec<i32> = text.lines().map(|l| l.parse().unwrap()).collect();
    assert_eq!(pids.len(), 3, "{text}");
    wait_until("all are gone", || !pids.iter().any(|&pid| alive(pid)));
}

#[test]
fn a_time_limit_kills_the_whole_task() {
    let mut rig = start(1);
    let body = Body::Command(sh("sleep 1000 & echo $!; wait"));
    let outcome = rig.run_spec(1, JobSpec { body, time_limit_ms: Some(300), ..JobSpec::default() });
    assert_eq!(outcome.kind, OutcomeKind::TimeLimit);
    let pid: i32 = String::from_utf8(rig.output(first()).0).unwrap().trim().parse().unwrap();
    wait_until("its child is gone", || !alive(pid));
}

#[test]
fn a_running_command_is_cancelled() {
    let mut rig = start(1);
    rig.define(1, JobSpec { body: Body::Command(sh("sleep 1000")), ..JobSpec::default() }, None);
    let attempt = rig.dispatch(1, &[b""])[0];
    rig.wait_for("a start", |m| matches!(m, Message::Started(_)).then_some(()));
    rig.say(CancelAttempts { epoch: Epoch(1), attempts: vec![attempt], kill: true });
    assert_eq!(rig.outcome(attempt).0.kind, OutcomeKind::Cancelled);
}

#[test]
fn a_task_begins_with_no_signal_blocked() {
    let mut rig = start(1);
    assert_eq!(rig.run(1, sh("grep SigBlk /proc/self/status")).kind, OutcomeKind::Value);
    assert_eq!(rig.output(first()).0, b"SigBlk:\t0000000000000000\n");
}

#[test]
fn gpus_are_shown_only_to_tasks_that_have_them() {
    let mut rig = start(2);
    let resources = Resources { gpus_milli: 1_000, ..Resources::default() };
    let body = Body::Command(sh("true"));
    rig.define(1, JobSpec { body, resources, ..JobSpec::default() }, None);
    rig.dispatch(1, &[b""]);
    let reason = rig.wait_for("a refusal", |m| match m {
        Message::Refused(refused) => Some(refused.reason.clone()),
        _ => None,
    });
    assert_eq!(reason, "it asks for 1 GPUs, the node has 0");
}

fn python_job(source: &str) -> (JobSpec, Option<Function>) {
    let bytes = serde_json::json!({"name": "f", "source": source}).to_string().into_bytes();
    let function = Function { kind: FunctionKind::Source, bytes, name: "f".into() };
    let body = Body::Python(Python { function: function.id(), ..Python::default() });
    (JobSpec { body, ..JobSpec::default() }, Some(function))
}

/// A pickle of `((), {})`: no arguments.
const NO_ARGUMENTS: &[u8] = b"\x80\x04)}\x86.";

#[test]
fn python_functions_run_in_warm_workers_and_their_output_is_theirs() {
    let mut rig = start(1);
    let source = "import os, sys\ndef f():\n    print('out', flush=True); os.system('echo child'); sys.stderr.write('err')\n    return os.getpid()\n";
    let (spec, function) = python_job(source);
    rig.define(1, spec, function);
    let attempts = rig.dispatch(1, &[NO_ARGUMENTS; 3]);
    let values: Vec<_> = attempts.iter().map(|&a| rig.outcome(a)).collect();
    for (outcome, value) in &values {
        assert_eq!(outcome.kind, OutcomeKind::Value, "{:?}", outcome.error);
        assert_eq!(value, &values[0].1, "one process ran them all");
    }
    for attempt in attempts {
        assert_eq!(rig.output(attempt), (b"out\nchild\n".to_vec(), b"err".to_vec()));
    }
}

#[test]
fn a_python_function_that_kills_its_worker_loses_only_itself() {
    let mut rig = start(1);
    let (spec, function) =
        python_job("import os\ndef f():\n    os.write(2, b'last words'); os.kill(os.getpid(), 9)\n");
    let (good, good_function) = python_job("def f():\n    return None\n");
    rig.define(1, spec, function);
    rig.define(2, good, good_function);
    let bad = rig.dispatch(1, &[NO_ARGUMENTS])[0];
    let good: Vec<_> = rig.dispatch(2, &[NO_ARGUMENTS; 20]);
    let (outcome, _) = rig.outcome(bad);
    let error = outcome.error.unwrap();
    assert_eq!((outcome.kind, error.signal), (OutcomeKind::WorkerLost, Some(9)));
    assert_eq!(error.stderr_tail.as_deref(), Some("last words"));
    for attempt in good {
        let (outcome, value) = rig.outcome(attempt);
        assert_eq!((outcome.kind, value.len()), (OutcomeKind::Value, 0), "None is the empty value");
    }
}

/// Short tasks are put in a row; one of them that turns out long keeps none of the others.
fn a_long_task_keeps_no_others(spec: JobSpec, function: Option<Function>) {
    let mut rig = start(2);
    rig.define(1, spec, function);
    let mut items = [&b"short"[..]; 200];
    items[100] = b"long";
    let mut attempts = rig.dispatch(1, &items);
    let long = attempts.remove(100);
    for attempt in attempts {
        assert_eq!(rig.outcome(attempt).0.kind, OutcomeKind::Value);
    }
    rig.say(CancelAttempts { epoch: Epoch(1), attempts: vec![long], kill: true });
    assert_eq!(rig.outcome(long).0.kind, OutcomeKind::Cancelled);
}

#[test]
fn a_long_command_keeps_no_short_ones() {
    let body = Body::Command(sh("[ {item} = short ] || sleep 1000"));
    a_long_task_keeps_no_others(JobSpec { body, ..JobSpec::default() }, None);
}

#[test]
fn a_long_python_task_keeps_no_short_ones() {
    let (spec, function) =
        python_job("import time\ndef f(what):\n    time.sleep(0 if what == 'short' else 1000)\n");
    a_long_task_keeps_no_others(spec, function);
}

#[test]
fn a_python_that_is_missing_is_said() {
    let mut rig = Rig::start(1, "python9.9", &["--exact", "the_manager_process", "--nocapture"]);
    let (spec, function) = python_job("def f():\n    return None\n");
    rig.define(1, spec, function);
    let attempt = rig.dispatch(1, &[NO_ARGUMENTS])[0];
    let (outcome, _) = rig.outcome(attempt);
    assert_eq!((outcome.kind, outcome.ran), (OutcomeKind::Refused, Ran::No));
    let message = outcome.error.unwrap().message;
    assert_eq!(message, "the Python interpreter cannot be started: command not found: python9.9");
}

#[test]
fn a_python_that_dies_at_once_is_said_with_its_last_words() {
    let mut rig = start(1);
    let (mut spec, function) = python_job("def f():\n    return None\n");
    spec.env.vars.insert("PYTHONHOME".into(), "/nowhere".into());
    rig.define(1, spec, function);
    let attempt = rig.dispatch(1, &[NO_ARGUMENTS])[0];
    let (outcome, _) = rig.outcome(attempt);
    assert_eq!(outcome.kind, OutcomeKind::Refused);
    assert!(outcome.error.unwrap().stderr_tail.unwrap().contains("encodings"));
}

#[test]
fn a_drain_ends_the_process_and_leaves_nothing_on_the_node() {
    let mut rig = start(1);
    assert_eq!(rig.run(1, sh("exit 0")).kind, OutcomeKind::Value);
    rig.say(Drain { epoch: Epoch(1), reason: "test".into(), grace_ms: 0 });
    let status = rig.manager.wait().unwrap();
    assert!(status.success());
    let names: Vec<_> = std::fs::read_dir(rig.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|n| n.to_string_lossy().starts_with("pf-")), "{names:?}");
}

#[test]
fn a_ticket_that_others_can_read_is_refused() {
    let rig = start(1);
    let ticket = rig.dir.path().join("ticket.json");
    let open = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o644);
    std::fs::set_permissions(&ticket, open).unwrap();
    let args = pf_pilot::ManagerArgs { ticket, node: "0".into(), ..Default::default() };
    assert_ne!(pf_pilot::manager_main(&args), std::process::ExitCode::SUCCESS);
}

#[test]
fn a_task_that_takes_more_memory_than_it_asked_for_is_killed_and_told_so() {
    let mut rig = start(1);
    let asking = |script: &str| JobSpec {
        body: Body::Command(sh(script)),
        resources: Resources { memory_bytes: 64 << 20, ..Resources::default() },
        ..JobSpec::default()
    };
    // A line without an end: `tail` must hold all of it, as a grandchild of what the manager started.
    let greedy = rig.run_spec(1, asking("head -c 200000000 /dev/zero | tail -n 1 | sleep 600"));
    assert_eq!((greedy.kind, greedy.ran), (OutcomeKind::OutOfMemory, Ran::Yes));
    let message = greedy.error.unwrap().message;
    assert!(message.starts_with("killed at its memory limit: it may have 64 MiB and had "), "{message}");
    assert_eq!(rig.run_spec(2, asking("sleep 1.2")).kind, OutcomeKind::Value);
}
