//! What Slurm has forgotten: with accounting its database tells how a block ended, without it the file that the batch script's supervisor wrote.

use pf_tests::notes::Notes;
use pf_tests::site::{Site, kill_hard, wait_for};
use pf_tests::slurm::{Cluster, blocks, submit};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

/// Ends of blocks that ended while no relay was there, and that the controller has forgotten when the next one comes: of one that was cancelled, and of one
/// whose pilot was killed.
fn ends_of_forgotten_blocks(cluster: &Cluster) -> BTreeMap<String, Value> {
    let site = cluster.site();
    let notes = Notes::new(&site);
    let go = site.path().join("go");
    let script = notes.script(&format!("while ! test -e {}; do sleep 0.05; done", go.display()));
    let endpoints = ["cancelled", "killed"];
    let job = |(label, name): (u32, &&str)| {
        cluster.endpoint(&site, name, &["queue=debug", "cores_per_node=2", "walltime=4m", "idle=1s"]);
        let label = label.to_string();
        submit(&site, &["--endpoint", name, "--array", &label, "--", "sh", "-c", &script])
    };
    let jobs: Vec<String> = (1..).zip(&endpoints).map(job).collect();
    wait_for("both tasks to run", || (notes.began().len() == 2).then_some(()));
    kill_hard(site.broker_pid().expect("the daemon runs"));
    let id = cluster.queue("pf-cancelled-").pop().expect("its block").id;
    let _ = cluster.slurm(&["scancel", &id]).expect_code(0);
    pilots(&site, "killed").into_iter().for_each(kill_hard);
    wait_for("Slurm to forget both", || cluster.ever("pf-").is_empty().then_some(()));
    let _ = site.pf(&["status"]).expect_code(0);
    let end = |name: &&str| {
        let end = wait_for(&format!("the end of {name}"), || {
            blocks(&site, name).first()?["state"].get("ended").cloned().filter(|e| !e.is_null())
        });
        ((*name).to_owned(), end)
    };
    let ends = endpoints.iter().map(end).collect();
    fs::write(&go, "").expect("a mark");
    jobs.iter().for_each(|job| drop(site.pf(&["wait", job]).expect_code(0)));
    notes.check_done_once(1..=2);
    ends
}

fn pilots(site: &Site, endpoint: &str) -> Vec<i32> {
    let ticket = format!(" pilot --ticket {}/root/shared/blocks/{endpoint}/", site.path().display());
    site.pids_of(&ticket)
}

/// Slurm forgets a job this many seconds after its end.
const FORGETFUL: (&str, &str) = ("SLURM_CLUSTER_MINJOBAGE", "2");

#[test]
fn the_supervisor_tells_how_a_forgotten_block_ended() {
    let Some(cluster) = Cluster::own(&["2"], &[FORGETFUL], &[]) else { return };
    let ends = ends_of_forgotten_blocks(&cluster);
    // A cancelled block is told to end, and does in order.
    assert_eq!(ends["cancelled"], "completed", "{ends:?}");
    assert_eq!(ends["killed"], json!({"signal": 9}), "{ends:?}");
}

#[test]
fn the_accounting_tells_how_a_forgotten_block_ended() {
    let programs = ["mariadbd", "slurmdbd", "sacctmgr"];
    let Some(cluster) = Cluster::own(&["2", "--accounting"], &[FORGETFUL], &programs) else { return };
    let ends = ends_of_forgotten_blocks(&cluster);
    assert_eq!(ends["cancelled"], "cancelled", "{ends:?}");
    // Of the shell's 137 for a signal sacct makes exit code 9: the supervisor knows better.
    assert_eq!(ends["killed"], json!({"signal": 9}), "{ends:?}");
}
