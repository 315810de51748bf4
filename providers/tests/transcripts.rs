//! What recorded schedulers said, and what the providers make of it. Each file below `fixtures/PROVIDER` is a transcript: `$ COMMAND`, then
//! `--- stdout`, `--- stderr`, `--- exit CODE`. Its reading is the snapshot beside it; a new file needs nothing but a look at its snapshot
//! (`INSTA_UPDATE=always`).

use pf_providers::{KnownBlock, Output, Provider, ProviderConfig, provider};
use std::fmt::{Debug, Write};
use std::path::Path;

struct Said {
    command: String,
    output: Output,
}

/// The commands of a transcript.
fn commands(text: &str) -> Vec<Said> {
    let mut found: Vec<Said> = Vec::new();
    let mut part = "";
    for line in text.split_inclusive('\n') {
        let bare = line.trim_end_matches('\n');
        if let Some(command) = bare.strip_prefix("$ ").filter(|_| part.is_empty()) {
            found.push(Said { command: command.into(), output: Output::default() });
        } else if bare == "--- stdout" || bare == "--- stderr" {
            part = &bare[4..];
        } else if let (Some(said), Some(exit)) = (found.last_mut(), bare.strip_prefix("--- exit ")) {
            said.output.exit = exit.split(' ').next().and_then(|code| code.parse().ok());
            part = "";
        } else if let Some(said) = found.last_mut() {
            match part {
                "stdout" => said.output.stdout.push_str(line),
                "stderr" => said.output.stderr.push_str(line),
                _ => {}
            }
        }
    }
    found
}

/// One line a fact.
fn told<T: Debug, E: std::fmt::Display>(result: Result<Vec<T>, E>) -> String {
    match result {
        Ok(list) if list.is_empty() => "nothing\n".into(),
        Ok(list) => list.iter().fold(String::new(), |text, fact| text + &format!("{fact:?}\n")),
        Err(error) => format!("error: {error}\n"),
    }
}

/// Every transcript of a provider, each command read by `read`, which passes over what the provider never runs.
fn check(name: &str, read: fn(&dyn Provider, &Said) -> Option<String>) {
    let config = ProviderConfig { name: name.into(), user: "root".into(), ..ProviderConfig::default() };
    let provider = provider(&config).expect("a provider");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("fixtures")
        .map(|e| e.expect("an entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "txt"))
        .collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a transcript");
        let mut reading = String::new();
        for said in commands(&text) {
            if let Some(told) = read(&*provider, &said) {
                write!(reading, "$ {}\n{told}\n", said.command).expect("a string takes it");
            }
        }
        assert!(!reading.is_empty(), "{}: nothing in it is read", file.display());
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(&folder);
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        let stem = file.file_stem().expect("a name").to_string_lossy().into_owned();
        settings.bind(|| insta::assert_snapshot!(stem, reading));
    }
}

/// A block whose id is the last word of the command, and whose name is what the answer says.
fn block_of(said: &Said) -> KnownBlock {
    let id = said.command.rsplit(' ').next().unwrap_or_default();
    let line = said.output.stdout.lines().next().unwrap_or_default();
    let name = line.split_once(" JobName=").map(|(_, rest)| rest.split(' ').next().unwrap_or_default());
    let name = name.or_else(|| line.rsplit('|').next()).unwrap_or_default();
    KnownBlock { name: name.into(), id: Some(id.into()), dir: String::new() }
}

#[test]
fn slurm() {
    check("slurm", |provider, said| {
        let output = &said.output;
        let of = |word: &str| said.command.split(' ').any(|w| w == word);
        Some(match () {
            () if of("sbatch") && !of("--wait") => told(provider.submitted(output).map(|id| vec![id])),
            () if said.command.contains("RestartCnt:|,Reason:|,Name:|") => told(provider.observed(output)),
            () if said.command.starts_with("scontrol") && of("show") && of("job") => {
                told(provider.looked_up(&block_of(said), 0, output).map(Vec::from_iter))
            }
            () if said.command.contains("JobIDRaw,State,ExitCode,JobName") => {
                told(provider.looked_up(&block_of(said), 1, output).map(Vec::from_iter))
            }
            () if of("scancel") => told(provider.cancelled(output).map(|()| Vec::<()>::new())),
            () => return None,
        })
    });
}
