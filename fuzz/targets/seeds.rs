//! `seeds TARGET FOLDER`: what fuzzing begins with, from what the tests of this repository pin and recorded. Called by `scripts/fuzz`.

use pf_protocol::outcome::OutcomeBatch;
use pf_protocol::outlog::{self, Stream};
use pf_protocol::{AttemptId, JobId, TaskId};
use std::error::Error;
use std::fs;
use std::path::Path;

mod golden;

const MESSAGES: &str =
    include_str!("../../core/protocol/tests/snapshots/golden__every_message_is_pinned.snap");

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [target, folder] = &arguments[..] else { return Err("seeds TARGET FOLDER".into()) };
    let seeds = match target.as_str() {
        "schedulers" => recorded()?,
        "node_lists" => {
            ["n[01-12,20]", "a\na\nb\n", "h2 2 h1 2 ", "batch3 1 h41n08 42", "3808-3811,3834", "2*0-3/4-7+8"]
                .map(|text| text.as_bytes().to_vec())
                .to_vec()
        }
        "frames" => messages(),
        "store" => store(),
        "block_files" => block_files(),
        "worker" => worker(),
        _ => return Err(format!("there is no target {target}").into()),
    };
    fs::create_dir_all(folder)?;
    for (number, seed) in seeds.iter().enumerate() {
        fs::write(Path::new(folder).join(format!("seed-{number}")), seed)?;
    }
    Ok(())
}

/// What schedulers were recorded to say: the streams of each command.
fn recorded() -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../providers/tests/fixtures");
    let mut seeds = Vec::new();
    for folder in fs::read_dir(fixtures)? {
        for file in fs::read_dir(folder?.path())? {
            let path = file?.path();
            if path.extension().is_none_or(|extension| extension != "txt") {
                continue;
            }
            let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
            for section in text.split("\n--- stdout").skip(1) {
                let section = section.split_once('\n').map_or("", |(_, rest)| rest);
                let (stdout, rest) = section.split_once("--- stderr").unwrap_or((section, ""));
                let stderr = rest.split("--- exit").next().unwrap_or("");
                seeds.push([b"\0", stdout.as_bytes(), b"\0", stderr.as_bytes()].concat());
            }
        }
    }
    Ok(seeds)
}

/// Every message of the protocol: a line with its name, then lines of digits.
fn messages() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for line in MESSAGES.lines() {
        match (line.strip_prefix(' '), seeds.last_mut()) {
            (Some(digits), Some(last)) => last.extend(golden::unhex(digits)),
            _ => seeds.push(Vec::new()),
        }
    }
    seeds.retain(|seed| !seed.is_empty());
    seeds
}

fn store() -> Vec<Vec<u8>> {
    let files = ["log-00000001-00000001", "payload-00000001", "snapshot-00000001-000000000002"];
    (0u8..).zip(files).map(|(which, name)| [vec![which], golden::file(name)].concat()).collect()
}

fn block_files() -> Vec<Vec<u8>> {
    let mut log = Vec::new();
    let (task, attempt) = (TaskId { job: JobId(7), index: 3 }, AttemptId::default());
    outlog::append(&mut log, task, attempt, Stream::Stdout, b"hello\n");
    outlog::append(&mut log, task, attempt, Stream::Stderr, b"oh\n");
    vec![log, pf_protocol::spool::encode(&[OutcomeBatch::default()]).unwrap_or_default()]
}

/// A greeting, and the answer of one task.
fn worker() -> Vec<Vec<u8>> {
    let frame = |kind: u8, body: &[u8]| {
        let len = (body.len() as u32 + 2).to_le_bytes();
        [&[9u8][..], &len, &[2, kind], body].concat()
    };
    let hello = br#"{"python":"3.11.2","marker":"00112233445566778899aabbccddeeff"}"#;
    let answer = [
        &1u32.to_le_bytes()[..],
        &7u64.to_le_bytes(),
        &[0],
        &9u32.to_le_bytes(),
        &3u32.to_le_bytes(),
        &0u32.to_le_bytes(),
        b"abc",
    ];
    vec![frame(10, hello), frame(11, &answer.concat())]
}
