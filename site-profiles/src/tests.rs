//! The profiles that are part of `pf`, the schema, and the page about them.

use super::*;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn all() -> Vec<(&'static str, &'static str, Profile)> {
    let read = |(name, text): &(&'static str, &'static str)| {
        (*name, *text, parse(text).unwrap_or_else(|e| panic!("{name}.toml: {e}")))
    };
    EMBEDDED.iter().map(read).collect()
}

/// Compares a generated file, or writes it with PF_BLESS=1.
fn held(path: &Path, made: &str) {
    let there = std::fs::read_to_string(path).unwrap_or_default();
    if there != made && std::env::var_os("PF_BLESS").is_some() {
        std::fs::write(path, made).expect("write");
        return;
    }
    assert!(there == made, "{} is old: run this test with PF_BLESS=1", path.display());
}

#[test]
fn every_file_is_part_of_pf() {
    let in_folder: BTreeSet<String> = std::fs::read_dir(here())
        .expect("site-profiles/")
        .filter_map(|e| e.expect("entry").file_name().to_str()?.strip_suffix(".toml").map(str::to_owned))
        .filter(|n| n != "Cargo")
        .collect();
    let listed: BTreeSet<String> = EMBEDDED.iter().map(|e| e.0.to_owned()).collect();
    assert_eq!(in_folder, listed);
    assert!(EMBEDDED.is_sorted(), "EMBEDDED is in order");
}

#[test]
fn what_is_called_unverified_is_there() {
    for (name, _, profile) in all() {
        let profile_json = serde_json::to_value(&profile).expect("json");
        for path in &profile.unverified {
            let found = profile_json.pointer(&format!("/{}", path.replace('.', "/")));
            assert!(found.is_some(), "{name}: unverified {path} is not set");
        }
        for list in ["queues", "nodes"] {
            for entry in profile_json[list].as_array().into_iter().flatten() {
                for field in entry["unverified"].as_array().into_iter().flatten() {
                    let field = field.as_str().expect("text");
                    assert!(
                        entry.get(field).is_some(),
                        "{name}: {list} {}: {field} is not set",
                        entry["name"]
                    );
                }
            }
        }
    }
}

/// A value from memory carries that comment, and each fact of a machine has a source behind it.
#[test]
fn facts_have_sources() {
    for (name, text, profile) in all() {
        if profile.status == Status::Generic {
            continue;
        }
        assert!(text.contains("Facts were collected on 20"), "{name}: no date");
        for (number, line) in text.lines().enumerate() {
            let fact = line.starts_with("[[") || line.starts_with("internet") || line.starts_with("daemons");
            assert!(!fact || line.contains("  # "), "{name}:{}: no source: {line}", number + 1);
        }
        let memory = text.contains("from memory");
        let marked = text.contains("unverified = [");
        assert!(!marked || memory, "{name}: `unverified` without the comment");
    }
}

#[test]
fn detection_finds_one_machine_for_each_login_node() {
    type Case = (&'static [(&'static str, &'static str)], &'static str, &'static [&'static str]);
    let cases: &[Case] = &[
        (&[("NERSC_HOST", "perlmutter")], "login07", &["perlmutter"]),
        (&[("NERSC_HOST", "cori")], "cori03", &["cori"]),
        (&[], "login05.frontier.olcf.ornl.gov", &["frontier"]),
        (&[], "x3004c0s1b0n0.hsn.cm.polaris.alcf.anl.gov", &["polaris"]),
        (&[], "polaris-login-02", &["polaris"]),
        (&[], "dt-login02.delta.ncsa.illinois.edu", &["delta"]),
        (&[("SLURM_CLUSTER_NAME", "lumi")], "uan01", &["lumi"]),
        (&[], "laptop.example.org", &[]),
    ];
    for (env, host, expected) in cases {
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let hosts = [(*host).to_owned()];
        let found = all();
        let found: Vec<&str> =
            found.iter().filter(|p| detect::reason(&p.2, &env, &hosts).is_some()).map(|p| p.0).collect();
        assert_eq!(&found, expected, "{host}");
    }
}

#[test]
fn errors_name_line_and_key() {
    let error = parse("title = \"X\"\nstatus = \"active\"\n\n[[queues]]\nnme = \"a\"\n").unwrap_err();
    assert_eq!(error.line, 5);
    assert!(error.message.contains("unknown field `nme`"), "{error}");
    assert!(parse("status = \"gone\"").is_err());
}

#[test]
fn rows_of_a_queue_are_found_by_nodes_and_constraint() {
    let frontier = all().into_iter().find(|p| p.0 == "frontier").expect("frontier").2;
    let walltimes = |nodes| -> Vec<_> {
        frontier
            .queue_rows("batch", nodes, "")
            .filter(|q| q.qos.is_empty())
            .map(|q| q.walltime_max_minutes)
            .collect()
    };
    assert_eq!(walltimes(91), [Some(120)]);
    assert_eq!(walltimes(92), [Some(360)]);
    assert_eq!(walltimes(10_000), []);
}

#[test]
fn the_schema_is_made_from_the_types() {
    let schema = schemars::schema_for!(Profile);
    let mut text = serde_json::to_string_pretty(&schema).expect("json");
    text.push('\n');
    held(&here().join("schema.json"), &text);
}

#[test]
fn the_page_is_made_from_the_files() {
    held(&here().join("../docs/sites.md"), &page());
}

const HEAD: &str = include_str!("page_head.md");

fn page() -> String {
    let mut page = HEAD.to_owned();
    let all = all();
    page.push_str("\n| name | machine | centre | scheduler | launcher | status |\n| --- | --- | --- | --- | --- | --- |\n");
    for (name, _, p) in &all {
        let launcher = p.setting("launcher").unwrap_or("");
        let _ = writeln!(
            page,
            "| `{name}` | {} | {} | {} | {launcher} | {} |",
            p.title,
            p.centre,
            p.scheduler(),
            p.status.word()
        );
    }
    for (name, _, profile) in all.iter().filter(|p| p.2.status != Status::Generic) {
        section(&mut page, name, profile);
    }
    page
}

fn section(page: &mut String, name: &str, profile: &Profile) {
    let _ = writeln!(page, "\n## {} (`{name}`)\n", profile.title);
    if !profile.about.is_empty() {
        let _ = writeln!(page, "{}\n", profile.about);
    }
    let mark = |path: &str| if profile.unverified.iter().any(|u| u == path) { " ?" } else { "" };
    let settings: Vec<String> = profile
        .endpoint
        .iter()
        .map(|(k, v)| format!("`{k} = {v}`{}", mark(&format!("endpoint.{k}"))))
        .collect();
    let _ = writeln!(page, "Settings: {}.", settings.join(", "));
    if !profile.requires.is_empty() {
        let _ = writeln!(page, "You must give: {}.", profile.requires.join(", "));
    }
    if profile.login.daemons != Daemons::Unknown {
        let _ = writeln!(
            page,
            "Daemons on login nodes: {}. {}",
            profile.login.daemons.word(),
            profile.login.about
        );
    }
    tables(page, profile);
}

fn tables(page: &mut String, profile: &Profile) {
    let show = |value: Option<u32>, field: &str, unverified: &[String]| {
        let mark = if unverified.iter().any(|u| u == field) { " ?" } else { "" };
        value.map_or(String::new(), |v| format!("{v}{mark}"))
    };
    if !profile.queues.is_empty() {
        page.push_str("\n| queue | nodes | longest, minutes | notes |\n| --- | --- | --- | --- |\n");
    }
    for q in &profile.queues {
        let nodes_min = show(q.nodes_min, "nodes_min", &q.unverified);
        let nodes_max = show(q.nodes_max, "nodes_max", &q.unverified);
        let range = match (nodes_min.is_empty(), nodes_max.is_empty()) {
            (true, true) => String::new(),
            (true, false) => format!("up to {nodes_max}"),
            _ => format!("{nodes_min} to {nodes_max}"),
        };
        let longest = show(q.walltime_max_minutes, "walltime_max_minutes", &q.unverified);
        let _ = writeln!(page, "| {} | {range} | {longest} | {} |", q.name, q.notes());
    }
    if !profile.nodes.is_empty() {
        page.push_str("\n| nodes | count | cores | threads a core | NUMA | memory, GiB | GPUs |\n| --- | --- | --- | --- | --- | --- | --- |\n");
    }
    for n in &profile.nodes {
        let of = |value, field| show(value, field, &n.unverified);
        let gpus =
            if n.gpu.is_empty() { String::new() } else { format!("{} {}", n.gpus.unwrap_or(0), n.gpu) };
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} | {gpus} |",
            n.name,
            of(n.count, "count"),
            of(n.cores, "cores"),
            of(n.threads_per_core, "threads_per_core"),
            of(n.numa, "numa"),
            of(n.memory_gib, "memory_gib")
        );
    }
}
