//! What the providers make of everything that was recorded on real schedulers, and of what was composed from documentation: each transcript in
//! `fixtures/` has its expectations beside it (`NAME.snap`), a line or more for each command. A provider never runs some of these commands:
//! those are marked `-`.

#![expect(clippy::unwrap_used, reason = "a test ends where its own preparations fail")]

use pf_providers::{
    KnownBlock, Observed, Output, Provider, ProviderConfig, ProviderError, dialect, provider,
};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// One command of a transcript and what it said.
#[derive(Debug, Default)]
struct Section {
    title: String,
    command: String,
    output: Output,
}

fn sections(text: &str) -> Vec<Section> {
    let mut found = Vec::new();
    let mut title = String::new();
    let mut current: Option<(Section, &str)> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("--- ") {
            let Some((section, stream)) = &mut current else { continue };
            let word = rest.split(' ').next().unwrap_or_default();
            if word == "exit" {
                section.output.exit = rest.split_whitespace().nth(1).and_then(|n| n.parse().ok());
                found.extend(current.take().map(|(section, _)| section));
            } else {
                *stream = match word {
                    "stderr" => "stderr",
                    "stdin" => "stdin",
                    _ => "stdout",
                };
            }
        } else if let Some((section, stream)) = &mut current {
            let to = match *stream {
                "stdout" => &mut section.output.stdout,
                "stderr" => &mut section.output.stderr,
                _ => continue,
            };
            to.push_str(line);
            to.push('\n');
        } else if let Some(command) = line.strip_prefix("$ ") {
            let section = Section { title: title.clone(), command: command.into(), ..Section::default() };
            current = Some((section, ""));
        } else if line.starts_with('#') {
            title = line.trim_start_matches('#').trim().into();
        }
    }
    found
}

fn transcripts(scheduler: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(scheduler);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "txt"));
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

fn speaking(name: &str, dialect: &str) -> Box<dyn Provider> {
    let config = ProviderConfig {
        name: name.into(),
        dialect: Some(dialect.into()),
        user: "cobuser".into(),
        ..ProviderConfig::default()
    };
    provider(&config).unwrap()
}

/// Holds what `read` makes of each section against the expectations beside the transcript.
fn check(scheduler: &str, read: impl Fn(&Section) -> Vec<String>) {
    for path in transcripts(scheduler) {
        let bytes = fs::read(&path).unwrap();
        let mut text = String::new();
        for section in sections(&String::from_utf8_lossy(&bytes)) {
            writeln!(text, "## {}\n$ {}", section.title, section.command).unwrap();
            let lines = read(&section);
            if lines.is_empty() {
                text.push_str("   -\n");
            }
            for line in lines {
                writeln!(text, "   {line}").unwrap();
            }
        }
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if text.is_empty() {
            // Read by a test of its own.
            continue;
        }
        insta::with_settings!({
            snapshot_path => path.parent().unwrap(),
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, { insta::assert_snapshot!(name, text); });
    }
}

fn shown(observed: &Observed) -> String {
    let left = observed.walltime_left_ms.map(|ms| format!(", {ms} ms left")).unwrap_or_default();
    let again = observed.restarts.filter(|n| *n > 0).map(|n| format!(", restart {n}")).unwrap_or_default();
    format!("{} {:?}: {:?}{left}{again}", observed.id, observed.name, observed.state)
}

fn error(error: &ProviderError) -> String {
    format!("{error}").replace('\n', " / ")
}

fn submitted(provider: &dyn Provider, output: &Output) -> Vec<String> {
    vec![match provider.submitted(output) {
        Ok(id) => format!("accepted as {id}"),
        Err(e) => error(&e),
    }]
}

fn status(provider: &dyn Provider, output: &Output) -> Vec<String> {
    match provider.observed(output) {
        Ok(found) if found.is_empty() => vec!["status: nothing".into()],
        Ok(found) => found.iter().map(|o| format!("status: {}", shown(o))).collect(),
        Err(e) => vec![format!("status: {}", error(&e))],
    }
}

fn lookup(provider: &dyn Provider, id: &str, name: &str, step: usize, output: &Output) -> String {
    let block = KnownBlock { name: name.into(), id: Some(id.into()), dir: "/d".into() };
    match provider.looked_up(&block, step, output) {
        Ok(Some(found)) => format!("lookup: {}", shown(&found)),
        Ok(None) => "lookup: this source does not know it".into(),
        Err(e) => format!("lookup: {}", error(&e)),
    }
}

fn cancelled(provider: &dyn Provider, output: &Output) -> Vec<String> {
    vec![match provider.cancelled(output) {
        Ok(()) => "cancelled".into(),
        Err(e) => error(&e),
    }]
}

/// The command without what was put around it to record it; None if it is several.
fn simple(command: &str) -> Option<&str> {
    let command = command.split_once(" | grep").map_or(command, |(first, _)| first);
    let command = command.split_once("| grep").map_or(command, |(first, _)| first).trim();
    (!command.contains([';', '|']) && !command.starts_with("bash ")).then_some(command)
}

/// Ids on a command line of qstat, with the server's name.
fn pbs_ids(command: &str) -> Vec<String> {
    let words = command.split_whitespace().map(|w| w.trim_matches('\''));
    let ids = words.filter(|w| w.starts_with(|c: char| c.is_ascii_digit()));
    ids.map(|w| if w.contains('.') { w.into() } else { format!("{w}.pbshead") }).collect()
}

/// The text that the same server prints for what it printed as JSON, field by field: both were recorded of job 35, and are compared below.
/// Works on lines, since some were left out of the record.
fn text_of_json(json: &str, id: Option<&str>) -> String {
    let mut text = id.map(|id| format!("Job Id: {id}\n")).unwrap_or_default();
    let mut group: Option<(usize, String)> = None;
    for line in json.lines() {
        let bare = line.trim_start();
        let depth = line.len() - bare.len();
        let Some((key, value)) = bare.strip_prefix('"').and_then(|l| l.split_once("\":")) else { continue };
        let value = value.trim().trim_end_matches(',');
        if group.as_ref().is_some_and(|(d, _)| depth <= *d) {
            group = None;
        }
        if value == "{" {
            if key.contains('.') {
                group = None;
                writeln!(text, "{}Job Id: {key}", if text.is_empty() { "" } else { "\n" }).unwrap();
            } else {
                group = Some((depth, key.into()));
            }
        } else if text.contains("Job Id: ") {
            let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            let dot = group.as_ref().map(|(_, g)| format!("{g}.")).unwrap_or_default();
            writeln!(text, "    {dot}{key} = {value}").unwrap();
        }
    }
    if text.contains("Job Id: ") { text + "\n" } else { String::new() }
}

/// What qstat printed before it was filtered for the record: an empty line after each job, and the job's id.
fn text_of_filtered(text: &str, ids: &[String]) -> String {
    let mut whole = String::new();
    if !text.is_empty() && !text.contains("Job Id: ") {
        writeln!(whole, "Job Id: {}", ids.first().map_or("", |i| i)).unwrap();
    }
    whole.push_str(&text.replace("--\n", "").replace("Job Id: ", "\nJob Id: "));
    if !text.is_empty() {
        whole.push('\n');
    }
    whole
}

#[test]
fn pbs() {
    let pbs = speaking("pbs", "openpbs");
    check("pbs", |section| {
        let Some(command) = simple(&section.command) else { return Vec::new() };
        if section.output.exit == Some(124) {
            return vec!["the runner of commands tells of the timeout".into()];
        }
        let mut words = command.split_whitespace().skip_while(|w| w.contains('=') && !w.starts_with('-'));
        match words.next().map(|w| w.rsplit('/').next().unwrap_or(w)) {
            Some("qsub") => submitted(&*pbs, &section.output),
            Some("echo") if command.contains("qsub") => submitted(&*pbs, &section.output),
            Some("qdel") => cancelled(&*pbs, &section.output),
            Some("qstat") if command.contains("--version") => {
                vec![format!("{:?}", dialect("pbs", &section.output))]
            }
            Some("qstat")
                if command.contains(" -f") && !command.contains(" -Q") && !command.contains(" -B") =>
            {
                let ids = pbs_ids(command);
                let mut output = section.output.clone();
                if command.contains("json") {
                    let lines_only = !output.stdout.is_empty() && !output.stdout.contains('{');
                    let id = ids.first().filter(|_| ids.len() == 1 && lines_only);
                    output.stdout = text_of_json(&output.stdout, id.map(String::as_str));
                } else if section.command.contains("grep") {
                    output.stdout = text_of_filtered(&output.stdout, &ids);
                }
                let mut lines = status(&*pbs, &output);
                if let [id] = &ids[..] {
                    let found = pbs.observed(&output).unwrap_or_default();
                    let name = found.first().map_or("x", |o| &o.name).to_owned();
                    lines.push(lookup(&*pbs, id, &name, 1, &output));
                }
                lines
            }
            _ => Vec::new(),
        }
    });
}

#[test]
fn torque() {
    let torque = speaking("pbs", "torque");
    check("torque", |section| {
        let words: Vec<&str> = section.command.split_whitespace().collect();
        let output = &section.output;
        match words[..] {
            ["qsub", ..] => submitted(&*torque, output),
            ["qdel" | "qsig", ..] => cancelled(&*torque, output),
            ["qstat", "--version"] => vec![format!("{:?}", dialect("pbs", output))],
            ["qstat", .., id] => {
                let mut lines = status(&*torque, output);
                let found = torque.observed(output).unwrap_or_default();
                let name = found.iter().find(|o| o.id == id).map_or("x", |o| &o.name).to_owned();
                lines.push(lookup(&*torque, id, &name, 0, output));
                lines
            }
            _ => Vec::new(),
        }
    });
}

#[test]
fn what_pbs_prints_as_json_means_what_it_prints_as_text() {
    let path = transcripts("pbs").into_iter().find(|p| p.ends_with("05-finished.txt")).unwrap();
    let all = sections(&fs::read_to_string(path).unwrap());
    let of = |title: &str| all.iter().find(|s| s.title == title).unwrap().output.clone();
    let (json, text) = (of("exit3 full record (json)"), of("exit3 full record (text)"));
    let json = Output { stdout: text_of_json(&json.stdout, None), ..json };
    let pbs = speaking("pbs", "openpbs");
    let found = pbs.observed(&text).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(pbs.observed(&json).unwrap(), found);
}

#[test]
fn lsf() {
    let openlava = speaking("lsf", "openlava");
    let ibm = speaking("lsf", "ibm");
    check("lsf", |section| {
        if section.command.starts_with("bjobs -a -noheader -o ") {
            // The fields that the provider asks for.
            let id = section.command.rsplit(' ').next().unwrap_or_default();
            let mut lines = status(&*ibm, &section.output);
            lines.push(lookup(&*ibm, id, "pf-polar-b7-0badcafe", 0, &section.output));
            return lines;
        }
        let Some(command) = simple(&section.command) else { return Vec::new() };
        let output = &section.output;
        if output.exit == Some(124) {
            return vec!["the runner of commands tells of the timeout".into()];
        }
        let id = command.split_whitespace().last().unwrap_or_default();
        // As printed, without the breaks of lines.
        let flat = output.stdout.replace("\n                     ", "");
        let name = flat.split_once("Job Name <").and_then(|(_, n)| n.split_once('>')).map_or("", |(n, _)| n);
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            ["env", _, "bsub", ..] | ["bsub", ..] => submitted(&*openlava, output),
            ["bkill", ..] => cancelled(&*openlava, output),
            ["bjobs" | "bhist", "-l" | "-UF", ..] => vec![lookup(&*openlava, id, name, 1, output)],
            ["bjobs", "-noheader" | "-a" | "-o", ..]
                if command.contains("-o ") && !command.contains("json") =>
            {
                // Composed of the fields that others ask for; ours are in a test of their own.
                if command.contains("delimiter") { Vec::new() } else { status(&*ibm, output) }
            }
            ["bjobs", ..] if command.contains("json") => Vec::new(),
            ["bjobs", ..] if command.contains("-w") || output.stdout.is_empty() => status(&*openlava, output),
            ["lsid"] => vec![format!("{:?}", dialect("lsf", output))],
            _ => Vec::new(),
        }
    });
}

#[test]
fn cobalt() {
    let cobalt = speaking("cobalt", "");
    check("cobalt", |section| {
        let Some(command) = simple(&section.command) else { return Vec::new() };
        let words: Vec<&str> = command.split_whitespace().collect();
        let output = &section.output;
        let id = words.last().filter(|w| w.bytes().all(|b| b.is_ascii_digit()));
        match words[..] {
            ["qsub", "--help" | "--version"] => Vec::new(),
            ["qsub", ..] => submitted(&*cobalt, output),
            ["qdel", ..] => cancelled(&*cobalt, output),
            ["qstat", "-l" | "-lf" | "-f" | "-Q", ..] => Vec::new(),
            ["qstat", ..] if output.stdout.is_empty() || command.contains("--header JobID:State") => {
                let mut lines = status(&*cobalt, output);
                lines.extend(id.map(|id| lookup(&*cobalt, id, "", 0, output)));
                lines
            }
            _ => Vec::new(),
        }
    });
}

#[test]
fn the_log_of_cobalt_tells_how_a_job_ended() {
    let cobalt = speaking("cobalt", "");
    let mut told = String::new();
    for path in transcripts("cobalt") {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if !name.starts_with("cobaltlog") {
            continue;
        }
        let stdout = fs::read_to_string(&path).unwrap();
        let id = stdout.lines().filter_map(|l| l.strip_prefix("Jobid: ")).next_back().unwrap();
        let output = Output { exit: Some(0), stdout: stdout.clone(), ..Output::default() };
        writeln!(told, "{name}: {}", lookup(&*cobalt, id, "", 1, &output)).unwrap();
        // As it is when the job has just been submitted, and nobody knows its id.
        let first: String = stdout.lines().take(4).map(|l| format!("{l}\n")).collect();
        let unnamed = KnownBlock { name: "pf-x".into(), id: None, dir: "/d".into() };
        let young = Output { stdout: first, ..output };
        let found = cobalt.looked_up(&unnamed, 0, &young).unwrap().unwrap();
        writeln!(told, "{name}, submitted: {}", shown(&found)).unwrap();
    }
    insta::with_settings!({
        snapshot_path => "fixtures/cobalt", prepend_module_to_snapshot => false, omit_expression => true
    }, { insta::assert_snapshot!("cobaltlog", told); });
}
