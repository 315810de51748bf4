//! The house rules, checked by machine: edges between crates, purity of cores, length of files and functions, dead files.
//!
//! What is over a limit with a reason stands in `house-exceptions.toml`; an entry that is no longer needed, or grew, fails as well: the ratchet only closes.

#![expect(clippy::unwrap_used, reason = "a test ends where its own preparations fail")]

use pf_tests::repo_root;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

/// Who may depend on whom (dev-dependencies are free): folder, then folders. Arrows point down only.
const EDGES: &[(&str, &[&str])] = &[
    ("core/protocol", &[]),
    ("core/link", &["core/protocol"]),
    ("core/broker", &["core/protocol", "core/link"]),
    ("core/relay", &["core/protocol", "core/link", "providers"]),
    ("core/manager", &["core/protocol", "core/link"]),
    ("providers", &["core/protocol"]),
    ("launcher", &["core/protocol"]),
    ("store", &["core/protocol"]),
    ("transport/zmq-sys", &[]),
    ("transport", &["core/protocol"]),
    ("pilot/hwloc-sys", &[]),
    ("broker", &["core/protocol", "core/link", "core/broker", "store", "transport"]),
    ("relay", &["core/protocol", "core/link", "core/relay", "providers", "launcher", "transport"]),
    ("pilot", &["core/protocol", "core/link", "core/manager", "launcher", "transport", "pilot/hwloc-sys"]),
    ("site-profiles", &[]),
    (
        "cli",
        &[
            "core/protocol",
            "broker",
            "relay",
            "pilot",
            "store",
            "transport",
            "providers",
            "launcher",
            "site-profiles",
        ],
    ),
    ("tests", &["core/protocol", "core/link", "core/broker", "core/relay", "core/manager", "launcher"]),
];

/// Crates that decide: nothing in their manifests can touch a clock, a file, a socket or chance.
const PURE: &[&str] = &[
    "core/protocol",
    "core/link",
    "core/broker",
    "core/relay",
    "core/manager",
    "providers",
    "launcher",
    "site-profiles",
];

/// What pure crates may depend on from outside.
const PURE_LIBRARIES: &[&str] =
    &["blake2", "bytes", "crc32fast", "rmp-serde", "serde", "serde_bytes", "serde_json", "thiserror", "toml"];

/// What pure crates may not name even from the standard library.
const IMPURE_WORDS: &[&str] = &[
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "std::env",
    "SystemTime",
    "Instant::now",
    "RandomState",
    "HashMap",
];

fn manifest(folder: &str) -> toml::Table {
    let path = repo_root().join(folder).join("Cargo.toml");
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).parse().unwrap()
}

fn dependencies(folder: &str) -> Vec<String> {
    let manifest = manifest(folder);
    let table = |name: &str| manifest.get(name).and_then(|d| d.as_table()).cloned().unwrap_or_default();
    table("dependencies").keys().chain(table("build-dependencies").keys()).cloned().collect()
}

fn package_name(folder: &str) -> String {
    manifest(folder)["package"]["name"].as_str().unwrap().to_owned()
}

#[test]
fn every_member_has_its_row_in_the_table_of_edges() {
    let root: toml::Table = fs::read_to_string(repo_root().join("Cargo.toml")).unwrap().parse().unwrap();
    let members: BTreeSet<&str> =
        root["workspace"]["members"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    let rows: BTreeSet<&str> = EDGES.iter().map(|e| e.0).collect();
    let missing: Vec<_> = members.difference(&rows).collect();
    assert!(missing.is_empty(), "members without a row: {missing:?}");
}

#[test]
fn arrows_point_down_only() {
    let folder_of: BTreeMap<String, &str> = EDGES.iter().map(|e| (package_name(e.0), e.0)).collect();
    for (folder, allowed) in EDGES {
        for dependency in dependencies(folder) {
            if let Some(target) = folder_of.get(&dependency) {
                assert!(
                    allowed.contains(target),
                    "{folder} depends on {target}, which the table of edges does not allow"
                );
            }
        }
    }
}

#[test]
fn pure_crates_stay_pure() {
    for folder in PURE {
        for dependency in dependencies(folder) {
            let fine = dependency.starts_with("pf-") || PURE_LIBRARIES.contains(&dependency.as_str());
            assert!(fine, "{folder} is pure, but depends on {dependency}");
        }
        for file in rust_files(&repo_root().join(folder).join("src")) {
            if is_unit_test(&file) {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            for (number, line) in without_tests(&text).iter().enumerate() {
                let code = line.split("//").next().unwrap_or("");
                for word in IMPURE_WORDS {
                    assert!(
                        !code.contains(word),
                        "{}:{}: {word} in a pure crate",
                        file.display(),
                        number + 1
                    );
                }
            }
        }
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return files };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn source_files() -> Vec<PathBuf> {
    let all = EDGES.iter().flat_map(|e| rust_files(&repo_root().join(e.0).join("src")));
    all.filter(|file| !is_unit_test(file)).collect()
}

/// Unit tests that have a file or a folder of their own.
fn is_unit_test(file: &Path) -> bool {
    let name = file.strip_prefix(repo_root()).expect("it is in the checkout");
    !name.starts_with("tests")
        && name.components().any(|c| c.as_os_str() == "tests" || c.as_os_str() == "tests.rs")
}

/// The lines before the unit tests.
fn without_tests(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    let end =
        lines.windows(2).position(|w| w[0].trim() == "#[cfg(test)]" && w[1].trim_start().starts_with("mod "));
    lines[..end.unwrap_or(lines.len())].to_vec()
}

/// `(name, lines)` of each function; the code is formatted, so a function ends at the `}` with its own indentation.
fn functions(lines: &[&str]) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let head = trimmed.split("fn ").next().unwrap_or("");
        let is_fn = trimmed.contains("fn ")
            && head.split_whitespace().all(|word| {
                matches!(word, "pub" | "const" | "async" | "unsafe" | "extern" | "\"C\"")
                    || word.starts_with("pub(")
            });
        if !is_fn {
            continue;
        }
        // A method of a trait without a body.
        if lines[start..].iter().find(|l| l.ends_with(['{', ';', '}'])).is_some_and(|l| l.ends_with(';')) {
            continue;
        }
        let indent = line.len() - trimmed.len();
        let close = format!("{}}}", " ".repeat(indent));
        if let Some(length) = lines[start..].iter().position(|l| *l == close) {
            let name = trimmed.split("fn ").nth(1).unwrap_or("").split(['(', '<']).next().unwrap_or("");
            found.push((name.to_owned(), length + 1));
        }
    }
    found
}

#[test]
fn files_and_functions_are_short_or_have_a_reason() {
    let path = repo_root().join("tests/house-exceptions.toml");
    let exceptions: toml::Table = fs::read_to_string(path).unwrap().parse().unwrap();
    let mut unused: BTreeSet<String> = exceptions.keys().cloned().collect();
    let mut problems = Vec::new();
    let mut judge = |key: String, lines: usize, max: usize| {
        if lines <= max {
            return;
        }
        match exceptions.get(&key) {
            None => problems.push(format!("{key} has {lines} lines, the limit is {max}")),
            Some(entry) => {
                unused.remove(&key);
                let granted = entry["lines"].as_integer().unwrap() as usize;
                if lines > granted {
                    problems.push(format!("{key} has {lines} lines, {granted} are granted"));
                }
                assert!(entry["reason"].as_str().is_some_and(|r| r.len() > 10), "{key}: a reason is needed");
            }
        }
    };
    for file in source_files() {
        let text = fs::read_to_string(&file).unwrap();
        let lines = without_tests(&text);
        let name = file.strip_prefix(repo_root()).unwrap().display().to_string();
        judge(name.clone(), lines.len(), FILE_LINES_MAX);
        for (function, length) in functions(&lines) {
            judge(format!("{name}#{function}"), length, FUNCTION_LINES_MAX);
        }
    }
    assert!(problems.is_empty(), "too long:\n{}", problems.join("\n"));
    assert!(unused.is_empty(), "exceptions that are no longer needed: {unused:?}");
}

#[test]
fn every_file_is_part_of_its_crate() {
    for file in source_files() {
        let stem = file.file_stem().unwrap().to_str().unwrap();
        let folder = file.parent().unwrap();
        if matches!(stem, "lib" | "main" | "build") || folder.ends_with("bin") {
            continue;
        }
        let (name, homes) = if stem == "mod" {
            (folder.file_name().unwrap().to_str().unwrap(), rust_files(folder.parent().unwrap()))
        } else {
            let mut homes = rust_files(folder);
            homes.push(folder.with_extension("rs"));
            (stem, homes)
        };
        let declared = homes.iter().filter_map(|home| fs::read_to_string(home).ok()).any(|text| {
            text.lines().any(|l| {
                let l = l.trim();
                l.ends_with(&format!("mod {name};"))
            })
        });
        assert!(declared, "{} is not part of any module", file.display());
    }
}

#[test]
fn every_module_says_what_it_is_for() {
    for file in source_files() {
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//!"), "{} does not open with what it is for", file.display());
    }
}

#[test]
fn the_measures_measure() {
    let text = "impl X {\n    pub fn long(\n        a: u8,\n    ) {\n        a;\n    }\n}\nfn short() {\n}\n#[cfg(test)]\nmod tests {\n}\n";
    let lines = without_tests(text);
    assert_eq!(lines.len(), 9);
    assert_eq!(functions(&lines), vec![("long".to_owned(), 5), ("short".to_owned(), 2)]);
}

#[test]
fn a_frame_has_one_limit_in_two_crates() {
    assert_eq!(pf_transport::limits::FRAME_BYTES_MAX, pf_protocol::limits::FRAME_BYTES_MAX);
}
