//! What goes wrong on a real Slurm: commands that hang, submits that surface late, nodes that fail, preemption, walltimes, scripts that fail.

use pf_tests::notes::Notes;
use pf_tests::site::wait_for;
use pf_tests::slurm::{Cluster, blocks, calls, end_of_first, explain, hang, real_path, submit, wrap};
use std::fs;
use std::time::{Duration, Instant};

/// What a person waits for an answer without wondering.
const PROMPT: Duration = Duration::from_secs(1);

#[test]
fn a_scheduler_that_hangs_holds_up_nothing_else() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    cluster.endpoint(&site, "hangs", &["queue=debug", "cores_per_node=2", "walltime=4m", "idle=1s"]);
    let go = site.path().join("go");
    let script = notes.script(&format!("while ! test -e {}; do sleep 0.05; done", go.display()));
    let job = submit(&site, &["--endpoint", "hangs", "--array", "1-2", "--", "sh", "-c", &script]);
    wait_for("tasks to run", || (notes.began().len() == 2).then_some(()));
    let before = calls(&site, "squeue").len();
    let hanging = hang(&site, "squeue");
    wait_for("a squeue that hangs", || (calls(&site, "squeue").len() > before).then_some(()));
    let long = submit(&site, &["--endpoint", "hangs", "--", "sleep", "600"]);
    fs::write(&go, "").expect("a mark");
    site.pf(&["wait", &job]).expect_code(0);
    wait_for("the long task to run", || {
        (site.pf(&["job", "show", &long, "--json"]).json()["counts"]["running"] == 1).then_some(())
    });
    let prompt = |args: &[&str], code: i32| {
        let began = Instant::now();
        let ran = site.pf(args).expect_code(code);
        assert!(began.elapsed() < PROMPT, "pf {args:?} took {:?}", began.elapsed());
        ran
    };
    prompt(&["status"], 0);
    prompt(&["results", &job], 0);
    prompt(&["logs", &format!("{job}.1")], 0);
    prompt(&["cancel", &long], 0);
    prompt(&["wait", "--timeout", "900ms", &long], 1);
    assert_eq!(calls(&site, "squeue").len(), before + 1, "one that hangs is not asked again");
    drop(hanging);
    wait_for("the idle block to be given back", || cluster.queue("pf-hangs-").is_empty().then_some(()));
}

#[test]
fn a_submit_that_surfaces_late_is_known_by_its_name() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    cluster.endpoint(&site, "late", &["queue=debug", "cores_per_node=2", "walltime=4m", "idle=1s"]);
    let mark = site.path().join("surface");
    // sbatch hears no answer from a controller under load, but what it sent is on its way and is taken later.
    let late = format!(
        "#!/bin/sh\necho \"$(date +%s.%N) $*\" >> '{calls}'\n\
         setsid sh -c 'while ! test -e {mark}; do sleep 0.05; done; exec {sbatch} \"$@\"' sh \"$@\" >/dev/null 2>&1 &\n\
         echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2\nexit 1\n",
        calls = site.path().join("calls.sbatch").display(),
        mark = mark.display(),
        sbatch = real_path("sbatch"),
    );
    wrap(&site, "sbatch", &late);
    let script = notes.script("sleep 0.1");
    let job = submit(&site, &["--endpoint", "late", "--array", "1-4", "--", "sh", "-c", &script]);
    wait_for("the submit to be given up", || {
        explain(&site, "late").contains("not clear whether").then_some(())
    });
    fs::write(&mark, "").expect("a mark");
    site.pf(&["wait", &job]).expect_code(0);
    notes.check_once(1..=4);
    assert_eq!(calls(&site, "sbatch").len(), 1, "nothing was submitted twice");
    wait_for("Slurm's id to be known", || {
        blocks(&site, "late").first()?["scheduler_id"].as_str().map(str::to_owned)
    });
}

#[test]
fn a_second_pilot_of_a_claimed_block_leaves() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    cluster.endpoint(&site, "twin", &["queue=debug", "cores_per_node=2", "walltime=4m", "idle=1s"]);
    let go = site.path().join("go");
    let script = notes.script(&format!("while ! test -e {}; do sleep 0.05; done", go.display()));
    let job = submit(&site, &["--endpoint", "twin", "--array", "1-2", "--", "sh", "-c", &script]);
    wait_for("tasks to run", || (notes.began().len() == 2).then_some(()));
    // The same script again, as a scheduler that took one request twice would run it.
    let folder = site.path().join("root/shared/blocks/twin/b1");
    let sbatch = ["sbatch", "--parsable", "-J", "twin-again", "-o", "/dev/null"];
    let block = folder.join("block.sh").display().to_string();
    let second = cluster.slurm(&[&sbatch[..], &["-p", "debug", &block]].concat()).expect_code(0);
    let (state, code) = cluster.end_of(second.stdout.trim());
    assert_eq!((state.as_str(), code.as_str()), ("FAILED", "2:0"), "the relay did not want it");
    fs::write(&go, "").expect("a mark");
    site.pf(&["wait", &job]).expect_code(0);
    notes.check_once(1..=2);
    let first = end_of_first(&site, "twin");
    assert!(first == "completed" || first == "cancelled", "{first}");
}

#[test]
fn a_script_that_fails_is_told_with_its_reason() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    let settings =
        ["queue=debug", "cores_per_node=1", "walltime=4m", "setup=echo no such module >&2; exit 3"];
    cluster.endpoint(&site, "broken", &settings);
    let job = submit(&site, &["--endpoint", "broken", "--", "true"]);
    assert_eq!(end_of_first(&site, "broken"), serde_json::json!({"failed": 3}));
    wait_for("the reason to be told", || explain(&site, "broken").contains("no such module").then_some(()));
    let _ = site.pf(&["cancel", &job]).expect_code(0);
}

#[test]
fn a_node_that_fails_takes_only_its_own_tasks() {
    let Some(cluster) = Cluster::alone() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    let settings = ["queue=batch", "exclusive=true", "nodes_per_block=3", "walltime=10m", "idle=2s"];
    cluster.endpoint(&site, "node", &settings);
    let go = site.path().join("go");
    let script = notes.script(&format!("while ! test -e {}; do sleep 0.05; done", go.display()));
    let args = ["--endpoint", "node", "--array", "1-6", "--", "sh", "-c", &script];
    let job = submit(&site, &args);
    wait_for("tasks on three nodes", || (notes.began().len() == 6).then_some(()));
    let by_node = notes.labels_by_node();
    // Not the first, where the pilot is.
    let (victim, lost) = by_node.iter().next_back().expect("three nodes");
    cluster.control(&["node-kill", victim]);
    fs::write(&go, "").expect("a mark");
    site.pf(&["wait", &job]).expect_code(0);
    notes.check_done_once(1..=6);
    let again: Vec<u32> = notes.runs().into_iter().filter(|(_, n)| *n > 1).map(|(l, _)| l).collect();
    assert_eq!(again, lost.iter().copied().collect::<Vec<u32>>(), "only what ran on {victim} ran again");
    cluster.control(&["node-start", victim]);
    site.pf(&["endpoint", "stop", "--kill", "node"]).expect_code(0);
    wait_for("an empty queue", || cluster.queue("pf-node-").is_empty().then_some(()));
}

#[test]
fn a_preempted_block_is_no_failure_and_its_tasks_run_again() {
    let Some(cluster) = Cluster::alone() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    let settings = ["queue=scavkill", "exclusive=true", "walltime=10m", "idle=2s"];
    cluster.endpoint(&site, "pre", &settings);
    let go = site.path().join("go");
    let script = notes.script(&format!("while ! test -e {}; do sleep 0.05; done", go.display()));
    let job = submit(&site, &["--endpoint", "pre", "--array", "1-2", "--", "sh", "-c", &script]);
    wait_for("tasks to run", || (notes.began().len() == 2).then_some(()));
    let urgent = cluster.sbatch(&site, &["-N4", "--exclusive", "-p", "batch", "-J", "urgent"], "sleep 1");
    // Slurm tells it early and gives it time: what ends in order by then has completed.
    let end = end_of_first(&site, "pre");
    assert!(end == "preempted" || end == "completed", "{end}");
    assert_eq!(cluster.end_of(&urgent).0, "COMPLETED");
    fs::write(&go, "").expect("a mark");
    site.pf(&["wait", &job]).expect_code(0);
    notes.check_done_once(1..=2);
    assert!(!explain(&site, "pre").contains("died young"), "{}", explain(&site, "pre"));
}

#[test]
fn the_walltime_of_a_block_ends_it_in_order() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    cluster.endpoint(&site, "wall", &["queue=debug", "cores_per_node=1", "walltime=1m", "idle=1s"]);
    // Never ends by itself the first time, and at once the second.
    let first = site.path().join("first");
    let script = notes.script(&format!("if mkdir {}; then sleep 600; fi", first.display()));
    let job = submit(&site, &["--endpoint", "wall", "--array", "1", "--", "sh", "-c", &script]);
    site.pf(&["wait", "--timeout", "3m", &job]).expect_code(0);
    assert_eq!(notes.runs().into_iter().collect::<Vec<_>>(), [(1, 2)]);
    notes.check_done_once(1..=1);
    assert_eq!(calls(&site, "sbatch").len(), 2, "one block after the other");
}
