//! `pf run` inside an allocation of emulated PBS, LSF and Cobalt: all nodes, no scheduler command, the end that comes early, and how one goes on.
//! (`slurm_run.rs` does the same on a real Slurm.)

use pf_tests::emulated::{Emulated, Kind};
use pf_tests::notes::Notes;
use pf_tests::site::{pf_binary, python, wait_for};
use serde_json::json;
use std::fs;

fn output(emulated: &Emulated) -> String {
    fs::read_to_string(emulated.site.path().join("out")).unwrap_or_default()
}

/// A line of a batch script: `pf run` in the shell's place.
fn run(words: &str) -> String {
    format!("exec '{}' run {words}", pf_binary().display())
}

fn all_nodes_and_no_command(kind: Kind) {
    let emulated = Emulated::new(kind, 3);
    let notes = Notes::new(&emulated.site);
    let id = emulated.batch(2, &run(&format!("--array 1-20 -- sh -c '{}'", notes.script("sleep 0.05"))));
    let job = emulated.end_of(id);
    let said = output(&emulated);
    assert_eq!((job.code, job.end), (Some(0), None), "{said}");
    assert!(said.contains("2 nodes") && said.contains("20 ok"), "{said}");
    notes.check_once(1..=20);
    // The first node is the one that the script runs on: nobody is asked to reach it.
    assert_eq!(emulated.reached(), ["n2"].map(String::from).into());
    let calls = emulated.all_calls();
    assert_eq!(calls.len(), 1, "only the batch job was submitted: {calls:?}");
    let left = fs::read_dir(emulated.site.path()).expect("the folder").flatten();
    let left: Vec<_> =
        left.map(|e| e.file_name()).filter(|n| n.to_string_lossy().starts_with("pf-run")).collect();
    assert!(left.is_empty(), "what was all done left its folder: {left:?}");
}

/// `end` is what comes: a cancel of the user's, or the walltime; `signal` is what the scheduler sends then. Some tasks have ended by then, and been
/// told of; the others wait for a mark, so that none is just about to end.
fn an_early_end_and_another_allocation(kind: Kind, end: &str, signal: &str) {
    let emulated = Emulated::new(kind, 2);
    let notes = Notes::new(&emulated.site);
    emulated.set("kill_delay_s", json!(30));
    let go = emulated.site.path().join("go");
    let wait = format!("while ! test -e {}; do sleep 0.05; done", go.display());
    let script = notes.script(&format!("test $PF_INDEX -le 4 || {wait}; echo did $PF_INDEX"));
    let id = emulated.batch(2, &run(&format!("--cores 1 --array 1-12 -- sh -c '{script}'")));
    wait_for("tasks to be told of", || (output(&emulated).matches("did ").count() == 4).then_some(()));
    emulated.strike(id, end);
    let job = emulated.end_of(id);
    let said = output(&emulated);
    assert_eq!((job.code, job.end.as_deref()), (Some(8), Some(end)), "{said}");
    assert!(said.contains(&format!("told to end by {signal}")), "{said}");
    assert!(said.contains("8 tasks not done"), "{said}");
    assert_eq!(notes.done(), (1..=4).collect());
    fs::write(go, "").expect("a mark");
    let hint =
        said.lines().find_map(|line| line.split_once("go on with pf run ")).expect("a hint").1.to_owned();
    let job = emulated.end_of(emulated.batch(2, &run(&hint)));
    assert_eq!((job.code, job.end), (Some(0), None), "{}", output(&emulated));
    notes.check_done_once(1..=12);
}

#[test]
fn a_python_executor_uses_all_nodes() {
    let emulated = Emulated::new(Kind::OpenPbs, 2);
    let source = pf_tests::repo_root().join("python").canonicalize().expect("the Python package");
    let script = format!(
        "import sys; sys.path.insert(0, {source:?})\nfrom pilotfish import Executor\n\
         with Executor() as ex:\n    print(*ex.map(abs, range(-3, 0)))\n"
    );
    fs::write(emulated.site.path().join("script.py"), script).expect("a script");
    let line = format!(
        "cd \"$PBS_O_WORKDIR\"; PILOTFISH_PF='{}' exec '{}' script.py",
        pf_binary().display(),
        python()
    );
    let job = emulated.end_of(emulated.batch(2, &line));
    assert_eq!((job.code, output(&emulated).trim()), (Some(0), "3 2 1"));
    // The first node is the one that the script runs on: nobody is asked to reach it.
    assert_eq!(emulated.reached(), ["n2"].map(String::from).into());
}

macro_rules! on_each {
    ($($scheduler:ident: $kind:expr, $cancel:literal, $limit:literal;)*) => {$(
        mod $scheduler {
            use super::*;

            #[test]
            fn all_nodes() {
                all_nodes_and_no_command($kind);
            }

            #[test]
            fn cancelled() {
                an_early_end_and_another_allocation($kind, "cancelled", $cancel);
            }

            #[test]
            fn walltime() {
                an_early_end_and_another_allocation($kind, "walltime", $limit);
            }
        }
    )*};
}

on_each! {
    openpbs: Kind::OpenPbs, "SIGTERM", "SIGTERM";
    openlava: Kind::OpenLava, "SIGINT", "SIGUSR2";
    ibm: Kind::Ibm, "SIGINT", "SIGUSR2";
    cobalt: Kind::Cobalt, "SIGTERM", "SIGTERM";
}
