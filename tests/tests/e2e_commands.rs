//! The main job by the command line: shell tasks through broker, relay, pilot, manager, and back, with the real binary.

use pf_tests::site::{Ran, Site, pf_binary, wait_for};
use std::fs;

#[test]
fn run_does_one_shot_with_the_exit_code_of_the_work() {
    let site = Site::new();
    let ran = site.pf(&["run", "--", "sh", "-c", "echo out; echo err >&2"]).expect_code(0);
    assert_eq!(ran.stdout, "out\n");
    assert!(ran.stderr.contains("err"), "{}", ran.stderr);
    site.pf(&["run", "--", "sh", "-c", "exit 7"]).expect_code(7);
    site.pf(&["run", "--array", "1-20", "--", "sh", "-c", "exit $((PF_INDEX == 13))"]).expect_code(1);
    assert!(site.pids().is_empty(), "left running: {:?}", site.pids());
}

#[test]
fn a_task_is_warned_before_its_time_limit() {
    let site = Site::new();
    let script = "trap 'exit 7' USR1; sleep 60 & wait";
    let run = ["run", "--warn-signal", "USR1", "--time-limit", "10500ms", "--", "sh", "-c", script];
    site.pf(&run).expect_code(7);
}

#[test]
fn a_job_is_forgotten_when_its_time_is_over() {
    let site = Site::new();
    let job = site.pf(&["submit", "--quiet", "--keep-for", "500ms", "--", "true"]).expect_code(0);
    let job = job.stdout.trim().to_owned();
    wait_for("the job to be forgotten", || (site.pf(&["job", "show", &job]).code == 4).then_some(()));
}

#[test]
fn an_array_is_submitted_waited_for_and_read() {
    let site = Site::new();
    let job = site.pf(&[
        "submit",
        "--quiet",
        "--array",
        "1-100:3%4",
        "--",
        "sh",
        "-c",
        "echo task {index} of $PF_JOB",
    ]);
    let job = job.expect_code(0).stdout.trim().to_owned();
    assert!(job.starts_with('j'), "{job}");
    site.pf(&["wait", &job]).expect_code(0);
    let shown = site.pf(&["job", "show", &job, "--json"]).expect_code(0).json();
    assert_eq!((shown["counts"]["total"].as_u64(), shown["counts"]["ok"].as_u64()), (Some(34), Some(34)));
    let log = site.pf(&["logs", &format!("{job}.100")]).expect_code(0);
    assert_eq!(log.stdout, format!("task 100 of {job}\n"));
    let results = site.pf(&["results", &job, "--json"]).expect_code(0);
    let mut labels: Vec<u64> =
        results.json_lines().iter().map(|line| line["label"].as_u64().unwrap()).collect();
    labels.sort_unstable();
    assert_eq!(labels, (1..=100).step_by(3).collect::<Vec<_>>());
}

#[test]
fn each_line_feeds_item_into_argv_env_and_stdin() {
    let site = Site::new();
    let input = b"alpha beta\n\xc3\xa4\n$HOME `date`\n";
    let job = site.pf_with_input(
        &[
            "submit",
            "--quiet",
            "--each-line",
            "-",
            "--env",
            "WHAT=<{item}>",
            "--",
            "sh",
            "-c",
            "printf '%s %s' \"$1\" \"$WHAT\"",
            "sh",
            "{item}",
        ],
        input,
    );
    let job = job.expect_code(0).stdout.trim().to_owned();
    site.pf(&["wait", &job]).expect_code(0);
    for (label, item) in [(0, "alpha beta"), (1, "ä"), (2, "$HOME `date`")] {
        let log = site.pf(&["logs", &format!("{job}.{label}")]).expect_code(0);
        assert_eq!(log.stdout, format!("{item} <{item}>"));
    }
    let job = site.pf_with_input(
        &["submit", "--quiet", "--each-line", "-", "--stdin-item", "--", "tr", "a-z", "A-Z"],
        b"abc\n",
    );
    let job = job.expect_code(0).stdout.trim().to_owned();
    site.pf(&["wait", &job]).expect_code(0);
    assert_eq!(site.pf(&["logs", &format!("{job}.0")]).stdout, "ABC");
}

#[test]
fn failures_are_grouped_and_only_they_are_retried() {
    let site = Site::new();
    let flag = site.path().join("fixed");
    let script = format!("test -e {} || exit $((PF_INDEX % 3))", flag.display());
    let job = site.pf(&["submit", "--quiet", "--array", "0-29", "--", "sh", "-c", &script]).expect_code(0);
    let job = job.stdout.trim().to_owned();
    let waited = site.pf(&["wait", &job]).expect_code(1);
    assert!(waited.stdout.contains("exit") || waited.stderr.contains("exit"), "{waited:?}");
    let shown = site.pf(&["job", "show", &job, "--json"]).json();
    let groups = shown["errors"].as_array().unwrap();
    let mut found: Vec<(i64, u64)> =
        groups.iter().map(|g| (g["exit"].as_i64().unwrap(), g["count"].as_u64().unwrap())).collect();
    found.sort_unstable();
    assert_eq!(found, [(1, 10), (2, 10)]);
    fs::write(&flag, "").unwrap();
    let again =
        site.pf(&["job", "retry", &job, "--failed", "--quiet"]).expect_code(0).stdout.trim().to_owned();
    site.pf(&["wait", &again]).expect_code(0);
    let shown = site.pf(&["job", "show", &again, "--json"]).json();
    assert_eq!(shown["counts"]["ok"], 20);
    site.pf(&["job", "forget", &job]).expect_code(0);
    site.pf(&["job", "show", &job]).expect_code(4);
}

#[test]
fn after_waits_and_max_fails_cancels_the_rest() {
    let site = Site::new();
    let out = site.path().join("order");
    let append = |word: &str| format!("echo {word} >> {}", out.display());
    let first = site.pf(&["submit", "--quiet", "--", "sh", "-c", &format!("sleep 0.3; {}", append("first"))]);
    let first = first.expect_code(0).stdout.trim().to_owned();
    let second = site.pf(&["submit", "--quiet", "--after", &first, "--", "sh", "-c", &append("second")]);
    let second = second.expect_code(0).stdout.trim().to_owned();
    site.pf(&["wait", &second]).expect_code(0);
    assert_eq!(fs::read_to_string(&out).unwrap(), "first\nsecond\n");

    let failing = site.pf(&["submit", "--quiet", "--array", "0-999%1", "--max-fails", "3", "--", "false"]);
    let failing = failing.expect_code(0).stdout.trim().to_owned();
    site.pf(&["wait", &failing]).expect_code(1);
    let counts = site.pf(&["job", "show", &failing, "--json"]).json()["counts"].clone();
    assert!(
        counts["failed"].as_u64().unwrap() < 100 && counts["cancelled"].as_u64().unwrap() > 900,
        "{counts}"
    );
    let dependent = site.pf(&["submit", "--quiet", "--after", &failing, "--", "true"]).expect_code(0);
    let dependent = dependent.stdout.trim().to_owned();
    site.pf(&["wait", &dependent]).expect_code(1);
}

#[test]
fn cancel_kills_what_runs_with_all_its_children() {
    let site = Site::new();
    let pids = site.path().join("pids");
    let script = format!("sleep 1000 & echo $! $$ > {}; wait", pids.display());
    let job =
        site.pf(&["submit", "--quiet", "--", "sh", "-c", &script]).expect_code(0).stdout.trim().to_owned();
    let text = wait_for("the task to run", || fs::read_to_string(&pids).ok().filter(|t| t.ends_with('\n')));
    site.pf(&["cancel", &job]).expect_code(0);
    site.pf(&["wait", &job]).expect_code(1);
    for pid in text.split_whitespace() {
        wait_for("the task's processes to end", || {
            (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(())
        });
    }
    assert_eq!(site.pf(&["job", "show", &job, "--json"]).json()["counts"]["cancelled"], 1);
}

#[test]
fn logs_follow_a_task_while_it_runs() {
    let site = Site::new();
    let go = site.path().join("go");
    let script = format!("echo begun; while ! test -e {}; do sleep 0.05; done; echo ended", go.display());
    let job =
        site.pf(&["submit", "--quiet", "--", "sh", "-c", &script]).expect_code(0).stdout.trim().to_owned();
    let task = format!("{job}.0");
    let mut follow = site.spawn(&["logs", "-f", &task]);
    follow.wait_for_output("begun");
    fs::write(go, "").unwrap();
    let ran = follow.end().expect_code(0);
    assert!(ran.stdout.ends_with("ended\n"), "{ran:?}");
}

#[test]
fn time_limits_retries_and_work_directories() {
    let site = Site::new();
    let job =
        site.pf(&["submit", "--quiet", "--time-limit", "1s", "--", "sh", "-c", "sleep 100 & sleep 100"]);
    let job = job.expect_code(0).stdout.trim().to_owned();
    site.pf(&["wait", &job]).expect_code(1);
    let task = site.pf(&["job", "show", &job, "--json"]).json();
    assert_eq!(task["errors"][0]["kind"], "time_limit");

    let mark = site.path().join("tries");
    let script = format!("echo x >> {0}; test $(wc -l < {0}) -ge 3", mark.display());
    let job = site.pf(&["submit", "--quiet", "--retries", "4", "--", "sh", "-c", &script]).expect_code(0);
    site.pf(&["wait", job.stdout.trim()]).expect_code(0);
    assert_eq!(fs::read_to_string(&mark).unwrap().lines().count(), 3);

    let job = site.pf(&[
        "submit",
        "--quiet",
        "--work-dir",
        "--array",
        "0-1",
        "--",
        "sh",
        "-c",
        "pwd; touch here; ls",
    ]);
    let job = job.expect_code(0).stdout.trim().to_owned();
    site.pf(&["wait", &job]).expect_code(0);
    let dirs: Vec<String> = (0..2)
        .map(|i| site.pf(&["logs", &format!("{job}.{i}")]).stdout.lines().next().unwrap().to_owned())
        .collect();
    assert_ne!(dirs[0], dirs[1]);
}

#[test]
fn tasks_are_bound_to_cores_of_their_own() {
    let site = Site::new();
    let cpus = std::thread::available_parallelism().unwrap().get();
    if cpus < 2 {
        println!("SKIPPED: one CPU only, binding cannot be told");
        return;
    }
    let script = "grep Cpus_allowed_list /proc/self/status; sleep 0.5";
    let job = site
        .pf(&["submit", "--quiet", "--array", &format!("1-{cpus}"), "--", "sh", "-c", script])
        .expect_code(0);
    let job = job.stdout.trim().to_owned();
    site.pf(&["wait", &job]).expect_code(0);
    let mut lists: Vec<String> =
        (1..=cpus).map(|i| site.pf(&["logs", &format!("{job}.{i}")]).stdout).collect();
    lists.sort();
    lists.dedup();
    assert_eq!(lists.len(), cpus, "two tasks that ran at once share a core: {lists:?}");
}

#[test]
fn stop_leaves_nothing_running() {
    let site = Site::new();
    site.pf(&["submit", "--quiet", "--", "sleep", "1000"]).expect_code(0);
    wait_for("the task to run", || (!site.pids_of("sleep 1000").is_empty()).then_some(()));
    site.pf(&["endpoint", "stop", "--kill", "local"]).expect_code(0);
    site.pf(&["broker", "stop"]).expect_code(0);
    wait_for("everything to end", || site.pids().is_empty().then_some(()));
}

#[test]
fn stop_waits_for_running_tasks_and_start_brings_back() {
    let site = Site::new();
    let go = site.path().join("go");
    let script = format!("while ! test -e {}; do sleep 0.02; done", go.display());
    let job = site.pf(&["submit", "--quiet", "--", "sh", "-c", &script]).expect_code(0).stdout;
    wait_for("the task to run", || (!site.pids_of(&script).is_empty()).then_some(()));
    let mut stop = site.spawn(&["endpoint", "stop", "local"]);
    stop.wait_for_talk("endpoint local is stopping (tasks that run: 1, blocks not over: 1)");
    std::fs::write(&go, "").expect("a mark");
    assert!(stop.end().expect_code(0).stdout.contains("has stopped"));
    site.pf(&["wait", job.trim()]).expect_code(0);
    let job = site.pf(&["submit", "--quiet", "--", "true"]).expect_code(0).stdout;
    site.pf(&["wait", "--timeout", "100ms", job.trim()])
        .expect_code(7)
        .says(&["is stopped", "pf endpoint start local"]);
    site.pf(&["endpoint", "start", "local"]).expect_code(0);
    site.pf(&["wait", job.trim()]).expect_code(0);
}

#[test]
fn every_answer_has_a_json_form() {
    let site = Site::new();
    let job = site.pf(&["submit", "--quiet", "--name", "n", "--label", "k=v", "--", "true"]).expect_code(0);
    let job = job.stdout.trim().to_owned();
    site.pf(&["wait", &job, "--json"]).expect_code(0).json();
    for args in [
        &["status", "--json"][..],
        &["job", "list", "--json"],
        &["job", "show", &job, "--json"],
        &["job", "explain", &job, "--json"],
        &["endpoint", "list", "--json"],
        &["endpoint", "show", "local", "--json"],
        &["endpoint", "explain", "local", "--json"],
        &["block", "list", "--json"],
        &["function", "list", "--json"],
        &["broker", "status", "--json"],
        &["config", "show", "--json"],
        &["results", "--json", &format!("{job}.0")],
        &["job", "list", "--label", "k=v", "--label", "k=v", "--json"],
        &["broker", "cert", "--json"],
    ] {
        site.pf(args).expect_code(0).json_lines();
    }
    let wrong = site.pf(&["submit", "--json", "--no-such-option", "--", "true"]).expect_code(2);
    let error: serde_json::Value = serde_json::from_str(&wrong.stderr).expect("one JSON object");
    assert_eq!((error["exit"].as_i64(), wrong.stdout.as_str()), (Some(2), ""));
    assert!(error["error"].as_str().is_some_and(|text| text.contains("--no-such-option")), "{error}");
    assert_eq!(site.pf(&["broker", "stop", "--json"]).expect_code(0).json()["running"], false);
}

/// A script that takes a lock and submits: its lock must end with it, not with the daemon that its submit started.
#[test]
fn a_daemon_holds_nothing_of_who_started_it() {
    let site = Site::new();
    let lock = site.path().join("lock");
    let script = "exec 9>\"$1\"; shift; \"$@\"";
    let mut command = site.program("sh");
    command.args(["-c", script, "sh"]).arg(&lock).arg(pf_binary()).args(["broker", "start"]);
    Ran::of(&mut command).expect_code(0);
    let pid = site.broker_pid().expect("the broker was started");
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").flatten();
    let held: Vec<_> =
        open.filter_map(|entry| fs::read_link(entry.path()).ok()).filter(|to| *to == lock).collect();
    assert_eq!(held, Vec::<std::path::PathBuf>::new());
}
