//! One workload on every scheduler that can be emulated: to the end, and through what schedulers do. Nothing is submitted twice, nothing is
//! called finished that is not, and every task comes to its end once. (`slurm_endpoint.rs` and `slurm_faults.rs` do the same on a real Slurm.)

use pf_tests::emulated::{Emulated, Kind};
use pf_tests::notes::Notes;
use pf_tests::site::{Ran, kill_hard, python, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

fn submit(emulated: &Emulated, endpoint: &str, array: &str, script: &str) -> String {
    let words = [
        "submit",
        "--quiet",
        "--endpoint",
        endpoint,
        "--cores",
        "1",
        "--array",
        array,
        "--",
        "sh",
        "-c",
        script,
    ];
    emulated.site.pf(&words).expect_code(0).stdout.trim().to_owned()
}

/// Blocks of an endpoint, oldest first.
fn blocks(emulated: &Emulated, endpoint: &str) -> Vec<Value> {
    let listed = emulated.site.pf(&["block", "list", "--endpoint", endpoint, "--json"]).expect_code(0);
    listed.json_lines().into_iter().map(|row| row["block"].clone()).collect()
}

/// How a block ended, once it has.
fn end_of(emulated: &Emulated, endpoint: &str, number: usize) -> Value {
    wait_for("the end of a block", || {
        let end = blocks(emulated, endpoint).get(number)?["state"].get("ended").cloned();
        end.filter(|e| !e.is_null())
    })
}

fn explain(emulated: &Emulated, endpoint: &str) -> String {
    emulated.site.pf(&["endpoint", "explain", endpoint]).expect_code(0).stdout
}

/// Tasks that wait for a mark, and the mark.
fn waiting(emulated: &Emulated, notes: &Notes) -> (String, impl Fn() + use<>) {
    let go = emulated.site.path().join("go");
    let script = notes.script(&format!("while ! test -e {}; do sleep 0.05; done", go.display()));
    (script, move || fs::write(&go, "").expect("a mark"))
}

fn wait_for_idle(emulated: &Emulated) {
    wait_for("an empty queue", || emulated.live().is_empty().then_some(()));
}

/// A scheduler with an endpoint, whose blocks are busy: each task runs, and waits for a mark.
struct Busy<G> {
    emulated: Emulated,
    notes: Notes,
    job: String,
    go: G,
}

fn busy(kind: Kind, settings: &[&str], tasks: u32) -> Busy<impl Fn() + use<>> {
    let busy = crowded(kind, 2, settings, tasks);
    wait_for("tasks to run", || (busy.notes.began().len() == tasks as usize).then_some(()));
    busy
}

/// The same, where not all of them need to run at once.
fn crowded(kind: Kind, nodes: usize, settings: &[&str], tasks: u32) -> Busy<impl Fn() + use<>> {
    let emulated = Emulated::new(kind, nodes);
    let notes = Notes::new(&emulated.site);
    emulated.endpoint("x", settings);
    let (script, go) = waiting(&emulated, &notes);
    let job = submit(&emulated, "x", &format!("1-{tasks}"), &script);
    wait_for("a task to run", || (!notes.began().is_empty()).then_some(()));
    Busy { emulated, notes, job, go }
}

impl<G: Fn()> Busy<G> {
    /// Gives the mark, and waits for the job.
    fn finish(&self) {
        (self.go)();
        self.emulated.site.pf(&["wait", &self.job]).expect_code(0);
    }

    fn state(&self) -> Value {
        blocks(&self.emulated, "x")[0]["state"].clone()
    }
}

fn a_session(kind: Kind) {
    let emulated = Emulated::new(kind, 4);
    let notes = Notes::new(&emulated.site);
    // Sites print on standard output what they like.
    emulated.mood("banner", "Welcome! 3 nodes are down.\n12 jobs wait.\nJob <7> of yours\n");
    let launcher = format!("launcher={}", kind.launcher());
    let several = ["blocks_max=2", "nodes_per_block=2", "cores=1", "interfaces=127.0.0.1", &launcher];
    emulated.endpoint("x", &several);
    let (script, go) = waiting(&emulated, &notes);
    let job = submit(&emulated, "x", "1-8", &script);
    wait_for("a task on each node of two blocks", || (notes.began().len() == 4).then_some(()));
    assert_eq!(emulated.live().len(), 2, "scaled out");
    // A pilot does not reach for its own node, the first of its block.
    assert_eq!(emulated.reached(), ["n2", "n4"].map(String::from).into());
    go();
    emulated.site.pf(&["wait", &job]).expect_code(0);
    notes.check_once(1..=8);
    wait_for_idle(&emulated);
    for number in 0..2 {
        // Given back when it was idle: by itself, or as we asked.
        let end = end_of(&emulated, "x", number);
        assert!(end == "completed" || end == "cancelled", "{:?}", blocks(&emulated, "x"));
    }
    assert_eq!(emulated.calls(emulated.submits()).len(), 2, "one submit a block");
    emulated.check_submits();
}

fn cancelled_by_us_and_by_the_user(kind: Kind) {
    let busy = busy(kind, &[], 1);
    let Busy { emulated, notes, job, .. } = &busy;
    emulated.strike(emulated.live()[0].id, "cancelled");
    let end = end_of(emulated, "x", 0);
    if kind != Kind::OpenLava && kind != Kind::Ibm {
        // LSF calls done what was killed and ended well.
        assert_eq!(end, "cancelled", "behind our back");
    }
    wait_for("the task to run again", || (notes.runs()[&1] == 2).then_some(()));
    emulated.site.pf(&["endpoint", "stop", "--kill", "x"]).expect_code(0);
    wait_for_idle(emulated);
    assert!(emulated.site.pids_of(" manager ").is_empty(), "{:?}", emulated.site.pids());
    (busy.go)();
    emulated.site.pf(&["cancel", job]).expect_code(0);
    emulated.check_submits();
}

/// The scheduler takes a block away for another job: stopped for a while, where it does that.
fn suspended_for_another(kind: Kind) {
    let busy = busy(kind, &[], 1);
    let id = busy.emulated.live()[0].id;
    busy.emulated.suspend(id, true);
    wait_for("the word of it", || busy.state().get("suspended").map(|_| ()));
    busy.emulated.suspend(id, false);
    wait_for("its end", || (busy.state() == "running").then_some(()));
    busy.finish();
    busy.notes.check_once(1..=1);
    assert_eq!(busy.emulated.jobs().len(), 1, "no block was asked for in its place");
}

/// What becomes of a task whose block is struck down, and how that block ended.
fn struck(kind: Kind, how: &str) -> Value {
    let busy = busy(kind, &[], 1);
    busy.emulated.strike(busy.emulated.live()[0].id, how);
    let end = end_of(&busy.emulated, "x", 0);
    busy.finish();
    busy.notes.check_done_once(1..=1);
    busy.emulated.check_submits();
    end
}

fn the_walltime_comes_early(kind: Kind) {
    let end = struck(kind, "walltime");
    match kind {
        Kind::OpenPbs | Kind::Cobalt => assert_eq!(end, "walltime"),
        // Its SIGUSR2 reaches the tasks too; LSF calls done what then ended in order.
        Kind::OpenLava | Kind::Ibm => assert!(end == "completed" || end == "walltime", "{end}"),
    }
}

/// Cobalt and LSF know no more than that it is gone.
fn a_node_is_lost(kind: Kind) {
    let end = struck(kind, "lost");
    match kind {
        Kind::OpenPbs => assert_eq!(end, "node_failed"),
        _ => assert_ne!(end, "completed"),
    }
}

fn a_refusal_is_told_with_a_hint(kind: Kind) {
    let emulated = Emulated::new(kind, 1);
    emulated.endpoint("x", &["queue=nosuch"]);
    let job = submit(&emulated, "x", "1-1", "true");
    let said = wait_for("the refusal", || {
        let said = explain(&emulated, "x");
        said.contains("hint").then_some(said)
    });
    assert!(said.contains("set queue"), "{said}");
    assert_eq!(emulated.jobs(), []);
    emulated.site.pf(&["cancel", &job]).expect_code(0);
}

fn the_scheduler_is_away_for_a_while(kind: Kind) {
    let busy = busy(kind, &[], 1);
    let emulated = &busy.emulated;
    emulated.mood("down", "");
    let before = emulated.calls(emulated.lists()).len();
    // Those of LSF wait for its return, the others ask again.
    let more = if kind.waits_while_down() { 0 } else { 1 };
    wait_for("a question without an answer", || {
        (emulated.calls(emulated.lists()).len() > before + more).then_some(())
    });
    assert_eq!(blocks(emulated, "x").len(), 1);
    assert_eq!(busy.state(), "running", "not told of is not over");
    busy.finish();
    emulated.calm("down");
    wait_for_idle(emulated);
    busy.notes.check_once(1..=1);
    emulated.check_submits();
}

fn a_killed_relay_finds_its_blocks(kind: Kind) {
    let busy = busy(kind, &["blocks_max=2", "cores=2"], 2);
    let emulated = &busy.emulated;
    kill_hard(emulated.site.broker_pid().expect("a daemon"));
    emulated.site.pf(&["status"]).expect_code(0);
    busy.finish();
    busy.notes.check_once(1..=2);
    wait_for_idle(emulated);
    assert_eq!(emulated.jobs().len(), 1, "no block was asked for again");
}

fn lies(kind: Kind) {
    // A block runs, and one waits for its node: then the relay asks often.
    let busy = crowded(kind, 1, &["blocks_max=2", "cores=1"], 6);
    let emulated = &busy.emulated;
    wait_for("a block that waits", || (emulated.live().len() == 2).then_some(()));
    emulated.mood("foreign", "");
    let id = emulated.live()[0].id.to_string();
    for (mood, text) in [("missing", id.as_str()), ("empty", ""), ("cut", "")] {
        emulated.mood(mood, text);
        wait_for(mood, || (!emulated.in_mood(mood)).then_some(()));
        let before = emulated.calls(emulated.lists()).len();
        wait_for("more listings", || (emulated.calls(emulated.lists()).len() > before + 1).then_some(()));
        assert_eq!(blocks(emulated, "x").len(), 2, "after {mood}");
        assert_eq!(busy.state(), "running", "after {mood}");
    }
    busy.finish();
    busy.notes.check_once(1..=6);
    wait_for_idle(emulated);
    assert_eq!(emulated.jobs().len(), 2, "no block was asked for again");
}

fn a_submit_surfaces_late(kind: Kind) {
    let emulated = Emulated::new(kind, 2);
    let notes = Notes::new(&emulated.site);
    emulated.mood("late", "");
    emulated.endpoint("x", &[]);
    let (script, go) = waiting(&emulated, &notes);
    let job = submit(&emulated, "x", "1-1", &script);
    wait_for("a submit without an answer", || explain(&emulated, "x").contains("not clear").then_some(()));
    emulated.calm("late");
    wait_for("a task to run", || (notes.began().len() == 1).then_some(()));
    // While it runs: a job that has ended is listed no more.
    wait_for("its id to be known", || blocks(&emulated, "x")[0]["scheduler_id"].is_string().then_some(()));
    go();
    emulated.site.pf(&["wait", &job]).expect_code(0);
    notes.check_once(1..=1);
    assert_eq!(emulated.calls(emulated.submits()).len(), 1, "nothing was submitted twice");
}

#[test]
fn every_reply_of_the_emulator_was_recorded() {
    let fixtures = pf_tests::repo_root().join("providers/tests/fixtures");
    let emulator = pf_tests::repo_root().join("tests/emulator");
    let mut check = Command::new(python());
    check.arg(emulator.join("emulator.py")).arg("--check").arg(fixtures);
    let _ = Ran::of(&mut check).expect_code(0);
    // And nothing else prints.
    for file in ["emulator.py", "queue_.py", "pbs.py", "lsf.py", "cobalt.py"] {
        let text = fs::read_to_string(emulator.join(file)).expect("a file of the emulator");
        assert!(!text.contains("print(") && !text.contains("sys.stdout"), "{file} prints by itself");
    }
}

macro_rules! on_each {
    ($($scheduler:ident: $kind:expr;)*) => {$(
        mod $scheduler {
            use super::*;

            #[test]
            fn session() {
                a_session($kind);
            }

            #[test]
            fn cancel() {
                cancelled_by_us_and_by_the_user($kind);
            }

            #[test]
            fn walltime() {
                the_walltime_comes_early($kind);
            }

            #[test]
            fn node_loss() {
                a_node_is_lost($kind);
            }

            #[test]
            fn refusal() {
                a_refusal_is_told_with_a_hint($kind);
            }

            #[test]
            fn down() {
                the_scheduler_is_away_for_a_while($kind);
            }

            #[test]
            fn relay_restart() {
                a_killed_relay_finds_its_blocks($kind);
            }

            #[test]
            fn listings_that_lie() {
                lies($kind);
            }

            #[test]
            fn late_submit() {
                a_submit_surfaces_late($kind);
            }
        }
    )*};
}

on_each! {
    openpbs: Kind::OpenPbs;
    openlava: Kind::OpenLava;
    ibm: Kind::Ibm;
    cobalt: Kind::Cobalt;
}

/// LSF suspends, PBS suspends or deletes, Cobalt does neither to jobs that do not ask for it.
#[test]
fn preemption() {
    for kind in [Kind::OpenPbs, Kind::OpenLava, Kind::Ibm] {
        suspended_for_another(kind);
    }
    assert_eq!(struck(Kind::OpenPbs, "preempted"), "preempted");
}

#[test]
fn a_full_queue_is_a_wait_and_no_failure() {
    let emulated = Emulated::new(Kind::OpenPbs, 1);
    emulated.mood("full", "");
    emulated.endpoint("x", &[]);
    let job = submit(&emulated, "x", "1-1", "true");
    let said = wait_for("the reason", || {
        let said = explain(&emulated, "x");
        said.contains("would exceed queue generic's per-user limit").then_some(said)
    });
    assert!(!said.contains("in a row"), "{said}");
    emulated.site.pf(&["cancel", &job]).expect_code(0);
}

/// Its history may be switched off, and LSF's logs may be gone: then the supervisor's file tells.
#[test]
fn what_the_scheduler_forgets_the_supervisor_knows() {
    for kind in [Kind::OpenPbs, Kind::OpenLava] {
        let emulated = Emulated::new(kind, 1);
        let notes = Notes::new(&emulated.site);
        emulated.set("history", json!(false));
        emulated.set("forgets", json!(true));
        emulated.set("clean_period_s", json!(0));
        emulated.endpoint("x", &[]);
        let job = submit(&emulated, "x", "1-1", &notes.script("true"));
        emulated.site.pf(&["wait", &job]).expect_code(0);
        let end = end_of(&emulated, "x", 0);
        assert!(end == "completed" || end == "cancelled", "{kind:?}: {end}");
    }
}

#[test]
fn what_can_never_run_is_an_error() {
    let emulated = Emulated::new(Kind::OpenPbs, 1);
    emulated.endpoint("x", &["nodes_per_block=9"]);
    let job = submit(&emulated, "x", "1-1", "true");
    wait_for("the reason", || explain(&emulated, "x").contains("Can Never Run").then_some(()));
    wait_for_idle(&emulated);
    emulated.site.pf(&["cancel", &job]).expect_code(0);
}
