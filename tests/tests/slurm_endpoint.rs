//! An endpoint on a real Slurm: from the first `pf endpoint add` to the last block that is given back.

use pf_tests::notes::Notes;
use pf_tests::site::{Site, python, wait_for};
use pf_tests::slurm::{Cluster, blocks, calls};
use serde_json::Value;
use std::fs;

/// Blocks of an endpoint that are not over, as `pf` sees them.
fn live_blocks(site: &Site, endpoint: &str) -> Vec<Value> {
    blocks(site, endpoint).into_iter().filter(|b| b["state"].get("ended").is_none()).collect()
}

#[test]
fn a_first_session_from_add_to_stop() {
    let Some(cluster) = Cluster::alone() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    let settings = ["queue=debug", "nodes_per_block=4", "walltime=3m", "idle=2s", "exclusive=true"];
    cluster.endpoint(&site, "first", &settings);
    let script = notes.script("sleep 0.2; echo did $PF_INDEX");
    let submit = ["submit", "--quiet", "--endpoint", "first", "--array", "1-100", "--", "sh", "-c", &script];
    let job = site.pf(&submit).expect_code(0).stdout.trim().to_owned();
    let queued = wait_for("a block in the queue", || cluster.queue("first").pop());
    assert!(queued.name.starts_with("pf-first-b1"), "{queued:?}");
    site.pf(&["wait", &job]).expect_code(0);
    notes.check_once(1..=100);
    assert_eq!(notes.nodes(), ["n1", "n2", "n3", "n4"].map(String::from).into());
    assert_eq!(site.pf(&["logs", &format!("{job}.7")]).expect_code(0).stdout, "did 7\n");
    let results = site.pf(&["results", &job]).expect_code(0).stdout;
    assert_eq!(results.lines().count(), 100, "{results}");
    wait_for("the idle block to be given back", || cluster.queue("first").is_empty().then_some(()));
    wait_for("pf to know that", || live_blocks(&site, "first").is_empty().then_some(()));
    assert_eq!(cluster.end_of(&queued.id).0, "COMPLETED");

    // New work, a new block; stop ends it all.
    let submit = ["submit", "--quiet", "--endpoint", "first", "--array", "1-20", "--", "sleep", "600"];
    let job = site.pf(&submit).expect_code(0).stdout.trim().to_owned();
    wait_for("tasks to run again", || {
        let shown = site.pf(&["job", "show", &job, "--json"]).json();
        (shown["counts"]["running"].as_u64() > Some(0)).then_some(())
    });
    site.pf(&["endpoint", "stop", "--kill", "first"]).expect_code(0);
    wait_for("an empty queue", || cluster.queue("first").is_empty().then_some(()));
    wait_for("nothing left running", || {
        let left = [" pilot ", " manager ", "sleep 600"].map(|words| site.pids_of(words).len());
        (left == [0; 3]).then_some(())
    });
    assert_eq!(calls(&site, "sbatch").len(), 2, "one submit a block");
}

#[test]
fn a_python_executor_and_its_script_after_a_restart() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    cluster.endpoint(&site, "py", &["queue=debug", "cores_per_node=2", "walltime=3m", "idle=1s"]);
    let source = pf_tests::repo_root().join("python").canonicalize().unwrap_or_default();
    let go = site.path().join("go");
    let script = format!(
        "import os, sys; sys.path.insert(0, {source:?})\nimport socket, time\nfrom pilotfish import Executor\n\
         def where(n):\n    import os, socket, time\n    while not os.path.exists({go:?}): time.sleep(0.02)\n    return socket.gethostname(), n * n\n\
         if sys.argv[1] == 'first':\n    ex = Executor(endpoint='py')\n    futures = [ex.submit(where, n) for n in range(8)]\n    \
         while not all(f.task for f in futures): time.sleep(0.01)\n    print(futures[0].task.split('.')[0], flush=True)\n    os._exit(0)\n\
         with Executor(endpoint='py') as ex:\n    values = list(ex.attach(sys.argv[2]).results())\n    \
         print([square for _, square in values], {{node[0] for node, _ in values}})\n"
    );
    let path = site.path().join("script.py");
    fs::write(&path, script).expect("a script");
    let python = |args: &[&str]| {
        let mut command = site.program(python());
        command.arg(&path).args(args).env("PILOTFISH_PF", pf_tests::site::pf_binary());
        pf_tests::site::Ran::of(&mut command).expect_code(0).stdout
    };
    let job = python(&["first"]).trim().to_owned();
    fs::write(&go, "").expect("a mark");
    let second = python(&["again", &job]);
    assert_eq!(second.trim(), "[0, 1, 4, 9, 16, 25, 36, 49] {'n'}", "on nodes of the cluster, all of them");
}
