//! `pf run` and the Python executor inside an allocation of a real Slurm: all nodes, no scheduler command, the walltime, and how one goes on.

use pf_tests::notes::Notes;
use pf_tests::site::{Ran, Site, pf_binary, python, wait_for};
use pf_tests::slurm::{Cluster, calls, real_path};
use std::collections::BTreeSet;
use std::fs;

/// `pf` as a word of a shell's line.
fn pf() -> String {
    format!("'{}'", pf_binary().display())
}

fn output(site: &Site) -> String {
    fs::read_to_string(site.path().join("out")).unwrap_or_default()
}

/// The folder that the run in job `id` left.
fn kept(site: &Site, id: &str) -> String {
    format!("{}/pf-run-{id}", site.path().display())
}

#[test]
fn a_run_uses_all_nodes_of_its_allocation_and_no_command_but_srun() {
    let Some(cluster) = Cluster::alone() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    let line = format!("exec {} run --array 1-100 -- sh -c '{}'", pf(), notes.script("sleep 0.2"));
    let id = cluster.sbatch(&site, &["-N4", "--exclusive", "-t", "2"], &line);
    let end = cluster.end_of(&id);
    assert_eq!(end, ("COMPLETED".into(), "0:0".into()), "{}", output(&site));
    notes.check_once(1..=100);
    assert_eq!(notes.nodes(), ["n1", "n2", "n3", "n4"].map(String::from).into());
    for command in ["sbatch", "squeue", "scancel", "scontrol", "sacct"] {
        assert_eq!(calls(&site, command), [], "{command} was called");
    }
    assert!(!fs::exists(kept(&site, &id)).unwrap(), "what was all done left its folder");
    assert!(output(&site).contains("100 ok"), "{}", output(&site));
}

#[test]
fn what_the_walltime_cut_off_is_done_in_the_next_allocation() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    // Two cores for ten seconds less the reserve: far from enough for 40 tasks.
    let line = format!(
        "exec {} run --time-left 10s --array 1-40 -- sh -c '{}'",
        pf(),
        notes.script("sleep 0.5; echo did $PF_INDEX")
    );
    let id = cluster.sbatch(&site, &["-N2", "-t", "2"], &line);
    assert_eq!(cluster.end_of(&id), ("FAILED".into(), "8:0".into()), "{}", output(&site));
    let done = notes.done();
    let said = output(&site);
    assert!(!done.is_empty() && done.len() < 40, "{} of 40 were done", done.len());
    assert!(said.contains("the time of the allocation is over"), "{said}");
    let missing = format!("{} tasks not done", 40 - done.len());
    assert!(said.contains(&missing), "not {missing:?}: {said}");
    assert_eq!(said.matches("did ").count(), done.len(), "what was done is shown: {said}");
    let hint = format!("pf run --resume {}", kept(&site, &id));
    assert!(said.contains(&hint), "{said}");

    let mut again = site.program(real_path("salloc"));
    let line = format!("{} run --resume '{}'", pf(), kept(&site, &id));
    again.args(["-N2", "-n16", "-t", "2", "sh", "-c", &line]);
    let ran = Ran::of(&mut again).expect_code(0);
    assert_eq!(
        ran.stdout.matches("did ").count(),
        40 - done.len(),
        "only what was not shown: {}",
        ran.stdout
    );
    notes.check_done_once(1..=40);
    assert!(!fs::exists(kept(&site, &id)).unwrap(), "what was all done left its folder");
}

#[test]
fn a_run_that_is_told_to_end_can_go_on_anywhere() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    let line = format!("exec {} run --array 1-20 -- sh -c '{}'", pf(), notes.script("sleep 0.3"));
    let id = cluster.sbatch(&site, &["-N1", "-t", "2"], &line);
    wait_for("some tasks to be done", || (notes.done().len() >= 3).then_some(()));
    let _ = cluster.slurm(&["scancel", "-b", "-s", "TERM", &id]);
    assert_eq!(cluster.end_of(&id), ("FAILED".into(), "8:0".into()), "{}", output(&site));
    assert!(output(&site).contains("told to end by SIGTERM"), "{}", output(&site));
    let done = notes.done().len();
    let ran = site.pf(&["run", "--json", "--resume", &kept(&site, &id)]).expect_code(0);
    assert_eq!(ran.json()["counts"]["ok"], 20);
    assert!(done < 20);
    notes.check_done_once(1..=20);
}

#[test]
fn a_run_on_every_node_at_once_is_refused() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    let mut srun = site.program(real_path("srun"));
    srun.args(["-N2", "-t", "1"]).arg(pf_binary()).args(["run", "--", "true"]);
    Ran::of(&mut srun).expect_code(2).says(&["several nodes", "start it once, without srun"]);
}

#[test]
fn a_python_executor_uses_all_nodes_of_its_allocation() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    let source = pf_tests::repo_root().join("python").canonicalize().unwrap();
    let script = format!(
        "import sys; sys.path.insert(0, {source:?})\nimport socket, time\nfrom pilotfish import Executor\n\
         def where(n):\n    time.sleep(0.3)\n    return socket.gethostname()\n\
         with Executor() as ex:\n    print(*sorted(set(ex.map(where, range(24), chunksize=1))))\n"
    );
    fs::write(site.path().join("script.py"), script).unwrap();
    let line = format!("PILOTFISH_PF={} exec '{}' script.py", pf(), python());
    let id = cluster.sbatch(&site, &["-N2", "-t", "2"], &line);
    assert_eq!(cluster.end_of(&id), ("COMPLETED".into(), "0:0".into()), "{}", output(&site));
    let said = output(&site);
    let nodes: BTreeSet<&str> = said.split_whitespace().collect();
    assert_eq!(nodes.len(), 2, "{said}");
    assert!(!fs::exists(kept(&site, &id)).unwrap(), "its shared folder is left");
}
