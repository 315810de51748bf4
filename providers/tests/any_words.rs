//! Whatever a scheduler says, no parser panics; and what is cut off or damaged is never taken for an end that it does not tell.

#![expect(clippy::unwrap_used, reason = "a test ends where its own preparations fail")]

use pf_protocol::report::BlockState;
use pf_providers::{KnownBlock, NAMES, Output, Provider, ProviderConfig, dialects, provider};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn all() -> Vec<Box<dyn Provider>> {
    let mut all = Vec::new();
    for name in NAMES {
        for dialect in dialects(name).unwrap() {
            let config = ProviderConfig {
                name: name.into(),
                dialect: Some((*dialect).into()),
                ..ProviderConfig::default()
            };
            all.push(provider(&config).unwrap());
        }
    }
    all
}

fn read_all(output: &Output) {
    for provider in all() {
        let _ = provider.submitted(output);
        let _ = provider.observed(output);
        let _ = provider.cancelled(output);
        for id in [None, Some("7".to_string()), Some("7.s".to_string())] {
            let block = KnownBlock { name: "pf-x".into(), id, dir: "/d".into() };
            for step in 0..=provider.lookup(&block).len() {
                let _ = provider.looked_up(&block, step, output);
            }
        }
    }
}

fn recorded() -> Vec<String> {
    let mut all = Vec::new();
    for scheduler in ["pbs", "torque", "lsf", "cobalt"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(scheduler);
        let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        paths.retain(|p| p.extension().is_some_and(|e| e == "txt"));
        paths.sort();
        all.extend(paths.iter().map(|p| String::from_utf8_lossy(&fs::read(p).unwrap()).into_owned()));
    }
    all
}

#[test]
fn what_is_no_id_is_never_taken_for_one() {
    for id in ["53.pbsv 23 03:00:36 2026", "-Wforce", "", "53", "53.a;b"] {
        for record in [
            format!("Job Id: {id}\n    Job_Name = pf-x\n    job_state = R\n\n"),
            format!("{id}|RUN|-|-|-|-|-|pf-x|-\n"),
            format!("{id}|R|0|10:00|0|None|pf-x|\n"),
        ] {
            let output = Output { exit: Some(0), stdout: record, ..Output::default() };
            for provider in all() {
                let found = provider.observed(&output).unwrap_or_default();
                let word = |id: &str| id.bytes().all(|b| b.is_ascii_digit()) && !id.is_empty();
                assert!(found.iter().all(|o| word(&o.id)), "{found:?}");
            }
        }
    }
}

/// What the text says has ended, and how.
fn ends(provider: &dyn Provider, stdout: &str) -> BTreeSet<String> {
    let output = Output { exit: Some(0), stdout: stdout.into(), ..Output::default() };
    let found = provider.observed(&output).unwrap_or_default();
    let ended = found.iter().filter(|o| matches!(o.state, BlockState::Ended(_)));
    ended.map(|o| format!("{} {:?}", o.id, o.state)).collect()
}

proptest! {
    #[test]
    fn any_bytes(
        stdout in proptest::collection::vec(any::<u8>(), 0..400),
        stderr in proptest::collection::vec(any::<u8>(), 0..100),
        exit in proptest::option::of(-1i32..256),
    ) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        read_all(&Output { exit, stdout: text(&stdout), stderr: text(&stderr) });
    }

    #[test]
    fn any_lines_that_look_right(
        lines in proptest::collection::vec(
            "(Job Id: [0-9.a-z]{0,9}|    [a-z_A-Z]{0,9} = .{0,20}|    (job_state|Exit_status|substate|run_count) = [A-Z0-9-]{0,4}|\t.{0,9}|Job Id <7>, Job Name <pf-x>,|[A-Z][a-z]{2} Nov 23 02:58:51: (Exited|Started|Exited with exit code [0-9]{0,12}).{0,9}|[0-9]{0,12}[| ].{0,40}|JobID  State|===|Jobid: [0-9]{0,12}|x\\) Info: .{0,50}|)",
            0..20,
        ),
        exit in 0i32..2,
    ) {
        let stdout = lines.join("\n") + "\n";
        read_all(&Output { exit: Some(exit), stdout: stdout.clone(), stderr: String::new() });
        read_all(&Output { exit: Some(exit), stdout: String::new(), stderr: stdout });
    }

    #[test]
    fn what_is_cut_off_tells_no_other_end(which in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>()) {
        let texts = recorded();
        let text = which.get(&texts);
        let mut at = cut.index(text.len() + 1);
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        read_all(&Output { exit: Some(0), stdout: text[..at].into(), ..Output::default() });
        for provider in all() {
            let whole = ends(&*provider, text);
            let part = ends(&*provider, &text[..at]);
            prop_assert!(part.is_subset(&whole), "{}: {part:?} of {whole:?}", provider.name());
        }
    }

    #[test]
    fn what_is_damaged_is_survived(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let texts = recorded();
        let mut bytes = which.get(&texts).clone().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        read_all(&Output { exit: Some(0), stdout: String::from_utf8_lossy(&bytes).into_owned(), ..Output::default() });
    }
}
