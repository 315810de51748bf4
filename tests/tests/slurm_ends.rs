//! How blocks end on a real Slurm: each end is told by its name, and what ran in the block is treated as its job wants.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pf_tests::notes::Notes;
use pf_tests::site::{Site, wait_for};
use pf_tests::slurm::{Cluster, blocks, end_of_first, explain, submit};
use serde_json::{Value, json};
use std::fs;

/// What a job may say of a loss, and the exit code of `pf wait` and the runs that follow from it when a block dies under its one task.
const POLICIES: [(&str, i32, usize); 3] = [("rerun", 0, 2), ("fail", 1, 1), ("wait", 0, 2)];

/// A block of one node in which one task for each of [`POLICIES`] runs.
struct Victim {
    endpoint: &'static str,
    /// In the order of [`POLICIES`]; their labels are `first` and the two after it.
    jobs: Vec<String>,
    first: u32,
    id: String,
    node: String,
}

impl Victim {
    fn new(
        cluster: &Cluster,
        site: &Site,
        notes: &Notes,
        endpoint: &'static str,
        first: u32,
        more: &[&str],
    ) -> Victim {
        let settings = ["cores=3", "exclusive=true", "walltime=10m", "idle=1s"];
        cluster.endpoint(site, endpoint, &[&settings, more].concat());
        let go = site.path().join("go");
        let script = notes.script(&format!("while ! test -e {}; do sleep 0.05; done", go.display()));
        let job = |(n, policy): (u32, &(&str, i32, usize))| {
            let label = (first + n).to_string();
            let args = ["--endpoint", endpoint, "--on-lost", policy.0, "--array", &label];
            submit(site, &[&args[..], &["--", "sh", "-c", &script]].concat())
        };
        let jobs = (0..).zip(&POLICIES).map(job).collect();
        wait_for(&format!("the tasks of {endpoint} to run"), || {
            (first..first + 3).all(|label| notes.began().contains(&label)).then_some(())
        });
        let queued = cluster.queue(&format!("pf-{endpoint}-")).pop().expect("its block runs");
        Victim { endpoint, jobs, first, id: queued.id, node: queued.nodes }
    }

    /// Stops everything of `pf` in its block, so that it cannot end in order.
    fn freeze(&self, site: &Site) {
        let folder = format!("/blocks/{}/", self.endpoint);
        let pids = site.pids_of(&folder);
        assert!(pids.len() >= 2, "pilot and manager of {}", self.endpoint);
        for pid in pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
        }
    }

    fn check(&self, site: &Site, notes: &Notes) {
        for ((label, job), (policy, code, runs)) in (self.first..).zip(&self.jobs).zip(POLICIES) {
            let waited = site.pf(&["wait", job]);
            let what = format!("{policy} in a block that was {}: {waited:?}", self.endpoint);
            assert_eq!(waited.code, code, "{what}");
            assert_eq!(notes.runs().get(&label), Some(&runs), "{what}");
            if policy == "fail" {
                assert!(waited.stderr.contains("lost"), "{what}");
            }
        }
    }
}

#[test]
fn a_block_that_dies_has_its_end_and_its_tasks_their_policy() {
    let Some(cluster) = Cluster::alone() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    let cancelled = Victim::new(&cluster, &site, &notes, "cancelled", 1, &["queue=batch"]);
    let down = Victim::new(&cluster, &site, &notes, "down", 11, &["queue=batch", "options=--no-requeue"]);
    let requeued = Victim::new(&cluster, &site, &notes, "requeued", 21, &["queue=batch"]);
    let preempted = Victim::new(&cluster, &site, &notes, "preempted", 31, &["queue=scavkill"]);

    let _ = cluster.slurm(&["scancel", &cancelled.id]).expect_code(0);
    let of_node = |state: &str| {
        let node = format!("nodename={}", down.node);
        cluster.slurm(&["scontrol", "update", &node, &format!("state={state}"), "reason=test"])
    };
    let _ = of_node("down").expect_code(0);
    let _ = cluster.slurm(&["scontrol", "requeue", &requeued.id]).expect_code(0);
    // What ends in order within the time that Slurm gives it would have completed.
    preempted.freeze(&site);
    let urgent = ["-N1", "--exclusive", "-p", "batch", "-w", &preempted.node, "-J", "urgent"];
    let urgent = cluster.sbatch(&site, &urgent, "true");

    assert_eq!(end_of_first(&site, "cancelled"), json!("cancelled"));
    assert_eq!(end_of_first(&site, "down"), json!("node_failed"));
    // It may have come back by itself.
    let _ = of_node("resume");
    assert_eq!(cluster.end_of(&urgent).0, "COMPLETED");
    assert_eq!(end_of_first(&site, "preempted"), json!("preempted"));
    wait_for("the requeue to be known", || (blocks(&site, "requeued")[0]["incarnation"] == 1).then_some(()));

    fs::write(site.path().join("go"), "").expect("a mark");
    for victim in [&cancelled, &down, &preempted, &requeued] {
        victim.check(&site, &notes);
        let said = explain(&site, victim.endpoint);
        assert!(!said.contains("died young"), "{said}");
    }
    assert_eq!(blocks(&site, "requeued").len(), 1, "the block that came back did the work");
}

#[test]
fn a_batch_script_that_is_killed_is_told_by_its_signal() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    let settings = ["queue=debug", "cores_per_node=1", "walltime=4m", "setup=echo so far >&2; kill -9 $$"];
    cluster.endpoint(&site, "shot", &settings);
    let job = submit(&site, &["--endpoint", "shot", "--", "true"]);
    assert_eq!(end_of_first(&site, "shot"), json!({"signal": 9}));
    wait_for("its last words", || explain(&site, "shot").contains("so far").then_some(()));
    let _ = site.pf(&["cancel", &job]).expect_code(0);
}

#[test]
fn a_block_that_hangs_ends_at_its_walltime() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    cluster.endpoint(&site, "hung", &["queue=debug", "cores_per_node=2", "walltime=1m", "idle=1s"]);
    let first = site.path().join("first");
    let script = notes.script(&format!("if mkdir {}; then sleep 600; fi", first.display()));
    let job = submit(&site, &["--endpoint", "hung", "--array", "1", "--", "sh", "-c", &script]);
    wait_for("it to run", || (notes.began().len() == 1).then_some(()));
    for pid in site.pids_of("/blocks/hung/") {
        let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
    }
    let known = site.pf(&["wait", "--timeout", "3m", &job]);
    assert_eq!(known.code, 0, "{known:?}");
    let ended: Vec<Value> = blocks(&site, "hung").into_iter().map(|b| b["state"]["ended"].clone()).collect();
    assert_eq!(ended.first(), Some(&json!("walltime")), "{ended:?}");
    assert_eq!(notes.runs().into_iter().collect::<Vec<_>>(), [(1, 2)]);
}

/// The early warning of Slurm reaches the batch script and by it the pilot, which tells the managers. Tasks hear of it by the signal that their job asked for,
/// and by no other.
#[test]
fn a_warned_block_sends_its_tasks_their_own_signal_and_no_other() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    cluster.endpoint(&site, "warned", &["queue=debug", "cores_per_node=2", "walltime=4m", "idle=1s"]);
    let heard = site.path().join("heard");
    fs::create_dir(&heard).expect("a folder");
    // Each signal that it hears is a file; the first attempt ends by itself only when its warn signal comes.
    let traps: Vec<String> = ["TERM", "INT", "HUP", "USR1", "USR2"]
        .iter()
        .map(|s| format!("trap \"echo > {dir}/$PF_INDEX.{s}; end={s}\" {s}", dir = heard.display()))
        .collect();
    let again = site.path().join("again");
    let wait = format!("end=; until [ \"$end\" = USR2 ] || [ -e {} ]; do sleep 0.05; done", again.display());
    let script = notes.script(&format!("{}; {wait}", traps.join("; ")));
    let task = |label: &str, more: &[&str]| {
        let args = [&["--endpoint", "warned", "--array", label][..], more, &["--", "sh", "-c", &script]];
        submit(&site, &args.concat())
    };
    let jobs = [task("1", &["--warn-signal", "USR2"]), task("2", &[])];
    wait_for("both to run", || (notes.began().len() == 2).then_some(()));
    let id = cluster.queue("pf-warned-").pop().expect("the block").id;
    // As `--signal=B:USR1@..` does.
    let _ = cluster.slurm(&["scancel", "--batch", "--signal=USR1", &id]).expect_code(0);
    wait_for("the warned task to end", || notes.done().contains(&1).then_some(()));
    let signals = || {
        let names =
            fs::read_dir(&heard).expect("the folder").filter_map(|e| e.ok()?.file_name().into_string().ok());
        names.collect::<std::collections::BTreeSet<String>>()
    };
    assert_eq!(signals(), ["1.USR2".to_owned()].into(), "the other one has heard nothing yet");
    fs::write(&again, "").expect("a mark");
    jobs.iter().for_each(|job| drop(site.pf(&["wait", job]).expect_code(0)));
    assert_eq!(notes.runs().get(&1), Some(&1), "it used its warning");
    assert!(!signals().iter().any(|s| s.contains("USR1")), "{:?}", signals());
}

#[test]
fn what_cannot_fit_into_a_block_is_refused_and_what_fits_runs() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    cluster.endpoint(&site, "short", &["queue=debug", "cores_per_node=1", "walltime=1m", "idle=1s"]);
    let task = |needed| submit(&site, &["--endpoint", "short", "--time-needed", needed, "--", "true"]);
    let (fits, never) = (task("40s"), task("59s"));
    let waited = site.pf(&["wait", &never]);
    assert!(waited.code == 1 && waited.stderr.contains("its walltime of 60 s is too short"), "{waited:?}");
    let _ = site.pf(&["wait", &fits]).expect_code(0);
    assert_eq!(blocks(&site, "short").len(), 1);
}

#[test]
fn a_block_that_its_user_holds_waits_and_says_so() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    // Jobs of this partition wait until it is opened.
    cluster.endpoint(&site, "held", &["queue=stuck", "cores_per_node=1", "walltime=4m", "idle=1s"]);
    let job = submit(&site, &["--endpoint", "held", "--array", "1", "--", "sh", "-c", &notes.script("true")]);
    let id = wait_for("its block", || cluster.queue("pf-held-").pop()).id;
    // What `hold` is to a user who is not an administrator.
    let _ = cluster.slurm(&["scontrol", "uhold", &id]).expect_code(0);
    let waited = wait_for("the word of it", || {
        let waited = site.pf(&["wait", "--timeout", "100ms", &job]).expect_code(7);
        waited.stderr.contains("is held: by its user").then_some(waited)
    });
    waited.says(&["scontrol release"]);
    let told = explain(&site, "held");
    assert!(told.contains("b1 is held") && !told.contains("died young"), "{told}");
    assert_eq!(cluster.queue("pf-held-").len(), 1, "it is left where it is");
    // Into a partition that is open.
    for words in [&["update", &format!("jobid={id}"), "partition=debug"][..], &["release", &id]] {
        let _ = cluster.slurm(&[&["scontrol"], words].concat()).expect_code(0);
    }
    let _ = site.pf(&["wait", &job]).expect_code(0);
    notes.check_once(1..=1);
}
