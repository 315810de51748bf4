//! `pf run` inside an allocation of emulated PBS, LSF and Cobalt: all nodes, no scheduler command, the end that comes early, and how one goes on.
//! (`slurm_run.rs` does the same on a real Slurm.)

use pf_tests::emulated::{Emulated, Kind};
use pf_tests::notes::Notes;
use pf_tests::site::{pf_binary, wait_for};
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
    assert_eq!(emulated.reached(), ["n1", "n2"].map(String::from).into());
    let calls = emulated.all_calls();
    assert_eq!(calls.len(), 1, "only the batch job was submitted: {calls:?}");
    let left = fs::read_dir(emulated.site.path()).expect("the folder").flatten();
    let left: Vec<_> =
        left.map(|e| e.file_name()).filter(|n| n.to_string_lossy().starts_with("pf-run")).collect();
    assert!(left.is_empty(), "what was all done left its folder: {left:?}");
}

/// `end` is what comes: a cancel of the user's, or the walltime; `signal` is what the scheduler sends then.
fn an_early_end_and_another_allocation(kind: Kind, end: &str, signal: &str) {
    let emulated = Emulated::new(kind, 2);
    let notes = Notes::new(&emulated.site);
    emulated.set("kill_delay_s", json!(30));
    if end == "walltime" {
        emulated.set("walltime_s", json!(2));
    }
    let id =
        emulated.batch(2, &run(&format!("--cores 1 --array 1-60 -- sh -c '{}'", notes.script("sleep 0.3"))));
    if end == "cancelled" {
        wait_for("tasks to be done", || (notes.done().len() >= 2).then_some(()));
        emulated.strike(id, "cancelled");
    }
    let job = emulated.end_of(id);
    let said = output(&emulated);
    assert_eq!((job.code, job.end.as_deref()), (Some(8), Some(end)), "{said}");
    assert!(said.contains(&format!("told to end by {signal}")), "{said}");
    let done = notes.done().len();
    assert!((1..60).contains(&done), "{done} of 60 were done");
    emulated.set("walltime_s", json!(600));
    let hint =
        said.lines().find_map(|line| line.split_once("go on with pf run ")).expect("a hint").1.to_owned();
    let id = emulated.batch(2, &run(&hint));
    let job = emulated.end_of(id);
    assert_eq!((job.code, job.end), (Some(0), None), "{}", output(&emulated));
    notes.check_done_once(1..=60);
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
