//! Every process of the chain is killed while work runs. Tasks leave a file made with O_EXCL for each run, so that what ran twice is counted.

#![expect(clippy::unwrap_used, reason = "a test ends where its own preparations fail")]

use pf_tests::site::{Site, kill_hard, wait_for};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A task that notes each of its runs in `dir` as `LABEL.PID`, and ends once `go` exists.
fn noting_script(dir: &Path, go: &Path) -> String {
    format!(
        "set -C; : > {dir}/$PF_INDEX.$$ || exit 99; while ! test -e {go}; do sleep 0.02; done",
        dir = dir.display(),
        go = go.display()
    )
}

fn name_of(entry: &fs::DirEntry) -> String {
    entry.file_name().into_string().unwrap()
}

/// How often each label ran.
fn runs(dir: &Path) -> BTreeMap<String, usize> {
    let mut runs = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let name = name_of(&entry);
        *runs.entry(name.split('.').next().unwrap().to_owned()).or_insert(0) += 1;
    }
    runs
}

struct Running {
    site: Site,
    job: String,
    notes: PathBuf,
    go: PathBuf,
}

/// A job of `tasks` tasks, of which some run.
fn start(tasks: u32, options: &[&str]) -> Running {
    let site = Site::new();
    let (notes, go) = (site.path().join("notes"), site.path().join("go"));
    fs::create_dir(&notes).unwrap();
    let (array, script) = (format!("0-{}", tasks - 1), noting_script(&notes, &go));
    let mut args = vec!["submit", "--quiet", "--array", &array];
    args.extend_from_slice(options);
    args.extend_from_slice(&["--", "sh", "-c", &script]);
    let job = site.pf(&args).expect_code(0).stdout.trim().to_owned();
    wait_for("a task to run", || (!runs(&notes).is_empty()).then_some(()));
    Running { site, job, notes, go }
}

impl Running {
    fn finish(&self, code: i32) -> serde_json::Value {
        fs::write(&self.go, "").unwrap();
        self.site.pf(&["wait", &self.job]).expect_code(code);
        self.site.pf(&["job", "show", &self.job, "--json"]).expect_code(0).json()
    }
}

#[test]
fn the_broker_is_killed_and_nothing_runs_twice() {
    let running = start(50, &[]);
    let broker = running.site.broker_pid().unwrap();
    kill_hard(broker);
    wait_for("the broker to be gone", || (!fs::exists(format!("/proc/{broker}")).unwrap()).then_some(()));
    let shown = running.site.pf(&["job", "show", &running.job, "--json"]).expect_code(0).json();
    assert_eq!(shown["counts"]["total"], 50);
    assert_ne!(running.site.broker_pid(), Some(broker));
    let shown = running.finish(0);
    assert_eq!(shown["counts"]["ok"], 50);
    let twice: Vec<_> = runs(&running.notes).into_iter().filter(|r| r.1 != 1).collect();
    assert!(twice.is_empty(), "ran more than once: {twice:?}");
}

#[test]
fn the_broker_is_killed_while_short_tasks_stream_through() {
    let site = Site::new();
    let notes = site.path().join("notes");
    fs::create_dir(&notes).unwrap();
    let script = format!("set -C; : > {}/$PF_INDEX.$$", notes.display());
    let job = site.pf(&["submit", "--quiet", "--array", "0-999", "--", "sh", "-c", &script]).expect_code(0);
    let job = job.stdout.trim().to_owned();
    for most in [100, 400, 700] {
        wait_for("tasks to run", || (runs(&notes).len() >= most).then_some(()));
        kill_hard(site.broker_pid().unwrap());
        // Any command that needs a broker starts it again.
        site.pf(&["status"]).expect_code(0);
    }
    site.pf(&["wait", &job]).expect_code(0);
    let counts = site.pf(&["job", "show", &job, "--json"]).json()["counts"].clone();
    assert_eq!(counts["ok"], 1000, "{counts}");
    let runs = runs(&notes);
    let twice: Vec<_> = runs.iter().filter(|r| *r.1 != 1).collect();
    assert!(runs.len() == 1000 && twice.is_empty(), "{} labels; more than once: {twice:?}", runs.len());
}

#[test]
fn the_manager_is_killed_and_its_tasks_run_again() {
    let running = start(6, &[]);
    let manager = running.site.pids_of(" manager ")[0];
    let before: Vec<String> = fs::read_dir(&running.notes).unwrap().map(|e| name_of(&e.unwrap())).collect();
    kill_hard(manager);
    for pid in before.iter().filter_map(|name| name.split('.').nth(1)) {
        wait_for("what the dead manager had started to end", || {
            (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(())
        });
    }
    // Those that were lost may come after the others, which wait for the mark.
    let shown = running.finish(0);
    assert_eq!(shown["counts"]["ok"], 6);
    let runs = runs(&running.notes);
    for label in before.iter().filter_map(|name| name.split('.').next()) {
        assert!(runs[label] > 1, "{label} had begun, and runs again: {runs:?}");
    }
}

#[test]
fn on_lost_fail_ends_what_was_possibly_running_and_only_that() {
    let running = start(6, &["--on-lost", "fail"]);
    let manager = running.site.pids_of(" manager ")[0];
    let ran_before = runs(&running.notes).len() as u64;
    kill_hard(manager);
    let shown = running.finish(1);
    let counts = &shown["counts"];
    assert!(counts["failed"].as_u64().unwrap() >= ran_before, "{counts}");
    assert_eq!(counts["failed"].as_u64().unwrap() + counts["ok"].as_u64().unwrap(), 6, "{counts}");
    assert_eq!(shown["errors"][0]["kind"], "lost");
    let twice: Vec<_> = runs(&running.notes).into_iter().filter(|r| r.1 != 1).collect();
    assert!(twice.is_empty(), "ran more than once: {twice:?}");
}

#[test]
fn the_pilot_is_killed_and_work_goes_on() {
    let running = start(6, &[]);
    kill_hard(running.site.pids_of(" pilot ")[0]);
    let shown = running.finish(0);
    assert_eq!(shown["counts"]["ok"], 6);
}

#[test]
fn a_task_that_kills_its_manager_is_convicted() {
    let site = Site::new();
    // The bad one kills its parent, the manager; the good ones beside it must all succeed.
    let script = "test $PF_INDEX = 3 && kill -9 $PPID; sleep 0.1";
    let job = site.pf(&["submit", "--quiet", "--array", "0-9", "--", "sh", "-c", script]).expect_code(0);
    let job = job.stdout.trim().to_owned();
    site.pf(&["wait", &job]).expect_code(1);
    let shown = site.pf(&["job", "show", &job, "--json"]).json();
    assert_eq!(
        (shown["counts"]["ok"].as_u64(), shown["counts"]["failed"].as_u64()),
        (Some(9), Some(1)),
        "{shown}"
    );
    assert_eq!(shown["errors"][0]["examples"][0], 3);
}

#[test]
fn a_full_disk_refuses_new_work_and_keeps_outcomes() {
    let site = Site::new();
    let root = site.path().join("root");
    fs::create_dir(&root).unwrap();
    let mount =
        |args: &[&str]| std::process::Command::new("mount").args(args).status().is_ok_and(|s| s.success());
    if !mount(&["-t", "tmpfs", "-o", "size=400m,mode=700", "pf-test", root.to_str().unwrap()]) {
        println!("SKIPPED: mounting a small file system needs root");
        return;
    }
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _unmount = Unmount(root.clone());
    let go = site.path().join("go");
    let script = format!("while ! test -e {}; do sleep 0.02; done", go.display());
    let job = site.pf(&["submit", "--quiet", "--array", "0-9", "--", "sh", "-c", &script]).expect_code(0);
    let job = job.stdout.trim().to_owned();
    let filler = root.join("filler");
    let _ = std::process::Command::new("dd")
        .args(["if=/dev/zero", &format!("of={}", filler.display()), "bs=1M", "count=500"])
        .stderr(std::process::Stdio::null())
        .status();
    let refused = wait_for("new work to be refused", || {
        let ran = site.pf(&["submit", "--", "true"]);
        (ran.code != 0).then_some(ran)
    });
    refused.says(&["no space", "hint:"]);
    fs::write(&go, "").unwrap();
    site.pf(&["wait", &job]).expect_code(0);
    fs::remove_file(&filler).unwrap();
    let again = wait_for("new work to be taken again", || {
        let ran = site.pf(&["submit", "--quiet", "--", "true"]);
        (ran.code == 0).then(|| ran.stdout.trim().to_owned())
    });
    site.pf(&["wait", &again]).expect_code(0);
    let _ = site.pf(&["endpoint", "stop", "--kill", "local"]);
    let _ = site.pf(&["broker", "stop"]);
}
