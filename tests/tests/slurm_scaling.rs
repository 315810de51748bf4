//! Scaling on a real Slurm: several shapes of blocks for one endpoint, accounts that never mix, nodes that are left out.

use pf_tests::notes::Notes;
use pf_tests::site::{Site, wait_for};
use pf_tests::slurm::{Cluster, blocks, explain, submit};
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;

/// Adds lines to the endpoints of this site.
fn configure(site: &Site, text: &str) {
    let path = site.path().join("root/config.toml");
    let file = OpenOptions::new().append(true).open(path);
    file.and_then(|mut f| f.write_all(text.as_bytes())).expect("a configuration");
}

#[test]
fn a_small_shape_first_a_large_one_for_the_rest_and_no_account_pays_for_another() {
    let Some(cluster) = Cluster::alone() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    // As configs/two-shapes.toml, on this cluster.
    cluster.endpoint(
        &site,
        "two",
        &["blocks_max=3", "idle=1s", "exclusive=true", "accounts=project-a,project-b"],
    );
    configure(
        &site,
        "[endpoints.two.shapes.debug]\nqueue = \"debug\"\nblocks_max = 1\nnodes_per_block = 1\nwalltime = \"3m\"\n\
         [endpoints.two.shapes.large]\nqueue = \"batch\"\nblocks_max = 2\nnodes_per_block = 2\nwalltime = \"10m\"\n\
         accounts = [\"project-a\"]\n",
    );
    let go = site.path().join("go");
    let hold = format!("while ! test -e {}; do sleep 0.05; done", go.display());
    // What pays for a task is in the account of the batch job in which it runs.
    let who = site.path().join("who");
    fs::create_dir(&who).expect("a folder");
    let script = notes.script(&format!("echo $SLURM_JOB_ID > {}/$PF_INDEX; {hold}", who.display()));
    let task = |labels: &str, account: &str| {
        let args = ["--endpoint", "two", "--account", account, "--array", labels, "--", "sh", "-c", &script];
        submit(&site, &args)
    };
    // Two slots in the small block, four in a large one.
    let a = task("1-6", "project-a");
    wait_for("a small block and a large one", || (notes.began().len() == 6).then_some(()));
    let shapes = |site: &Site| {
        let name = |b: &serde_json::Value| b["shape"].as_str().map(str::to_owned);
        blocks(site, "two").iter().filter_map(name).collect::<Vec<_>>()
    };
    assert_eq!(shapes(&site), ["debug", "large"]);
    let queue = cluster.queue("pf-two-");
    let queues: BTreeSet<Option<String>> =
        queue.iter().map(|q| cluster.job_field(&q.id, "Partition")).collect();
    assert_eq!(queues, ["debug", "batch"].map(|q| Some(q.into())).into());

    // There is no block of theirs, and the small one is all that may be theirs.
    let b = task("11-12", "project-b");
    let refused = task("13", "project-c");
    let waited = site.pf(&["wait", &refused]);
    assert!(waited.code == 1 && waited.stderr.contains("account project-c"), "{waited:?}");
    wait_for("the reason", || {
        explain(&site, "two").contains("1 blocks of it are there, 1 at the most").then_some(())
    });
    assert_eq!(notes.began().len(), 6, "nothing of project-b runs on hours of project-a");
    fs::write(&go, "").expect("a mark");
    site.pf(&["wait", &a, &b]).expect_code(0);
    for label in (1..=6).chain([11, 12]) {
        let id = fs::read_to_string(who.join(label.to_string())).expect("who paid");
        let wanted = if label < 10 { "project-a" } else { "project-b" };
        assert_eq!(cluster.job_field(id.trim(), "Account").as_deref(), Some(wanted), "task {label}");
    }
    notes_once(&notes);
}

fn notes_once(notes: &Notes) {
    let more_than_once: Vec<_> = notes.runs().into_iter().filter(|(_, n)| *n != 1).collect();
    assert!(more_than_once.is_empty(), "{more_than_once:?}");
}

#[test]
fn a_node_that_fails_everything_is_left_out_of_the_next_block() {
    let Some(cluster) = Cluster::alone() else { return };
    let site = cluster.site();
    let settings = ["queue=batch", "exclusive=true", "nodes_per_block=3", "walltime=10m", "idle=1s"];
    cluster.endpoint(&site, "bad", &settings);
    let script = "sleep 0.05; test $(hostname) != n2";
    let args = ["--endpoint", "bad", "--array", "1-200", "--retries", "5", "--", "sh", "-c", script];
    let job = submit(&site, &args);
    wait_for("the quarantine", || explain(&site, "bad").contains("n2").then_some(()));
    site.pf(&["wait", &job]).expect_code(0);
    wait_for("the block to be given back", || cluster.queue("pf-bad-").is_empty().then_some(()));
    // It got the first three of four nodes.
    let next = submit(&site, &["--endpoint", "bad", "--", "true"]);
    let id = wait_for("another block", || cluster.queue("pf-bad-b2").pop()).id;
    assert_eq!(cluster.job_field(&id, "ExcNodeList").as_deref(), Some("n2"));
    let _ = site.pf(&["cancel", &next]).expect_code(0);
}

#[test]
fn where_no_block_can_do_without_a_bad_node_it_is_there_and_gets_no_tasks() {
    let Some(cluster) = Cluster::alone() else { return };
    let site = cluster.site();
    let settings = ["queue=batch", "exclusive=true", "nodes_per_block=4", "walltime=10m", "idle=1s"];
    cluster.endpoint(&site, "all", &settings);
    let script = "sleep 0.05; test $(hostname) != n2";
    let task = |labels: &str, retries: &str| {
        let args = ["--endpoint", "all", "--array", labels, "--retries", retries, "--", "sh", "-c", script];
        submit(&site, &args)
    };
    let job = task("1-200", "5");
    wait_for("the quarantine", || explain(&site, "all").contains("node n2 gets no tasks").then_some(()));
    site.pf(&["wait", &job]).expect_code(0);
    wait_for("the block to be given back", || cluster.queue("pf-all-").is_empty().then_some(()));
    // All four nodes are wanted, and the one that fails everything must not fail these.
    let next = task("1-20", "0");
    site.pf(&["wait", &next]).expect_code(0);
    let told = explain(&site, "all");
    assert!(told.contains("the scheduler has no block of shape") && !told.contains("died young"), "{told}");
    assert_eq!(blocks(&site, "all").len(), 3, "one was refused: {told}");
}
