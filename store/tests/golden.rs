//! Pins the bytes on disk. A change here is a change of format: it needs a new version number in `frame.rs` and a reader
//! for the old one. `golden/store.hex` was made from the description of the format (log version 1), not by this program, so
//! that the two are held against each other; `golden/epoch2.hex` is what this program then writes behind it (version 2).
#![expect(clippy::unwrap_used, reason = "a test ends where an expectation fails")]

mod common;

use std::fmt::Write as _;
use std::path::Path;

use common::{Found, quick};
use pf_store::{Class, RecordType, StoreError};

const FILES: [&str; 3] = ["log-00000001-00000001", "payload-00000001", "snapshot-00000001-000000000002"];
const GOLDEN: &str = include_str!("golden/store.hex");
const LOG_ID: u64 = 0x1122_3344_5566_7788;

/// Lines of 32 bytes; runs of zeros longer than that are given by their length.
fn hex(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    let mut out = String::new();
    let mut zero_lines = 0;
    for line in bytes[..end].chunks(32) {
        if line.iter().all(|byte| *byte == 0) {
            zero_lines += 1;
            continue;
        }
        if zero_lines > 0 {
            writeln!(out, "zeros {}", zero_lines * 32).unwrap();
            zero_lines = 0;
        }
        for byte in line {
            write!(out, "{byte:02x}").unwrap();
        }
        out.push('\n');
    }
    out
}

fn unhex(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for line in text.lines() {
        match line.strip_prefix("zeros ") {
            Some(count) => out.resize(out.len() + count.parse::<usize>().unwrap(), 0),
            None => out.extend(
                (0..line.len() / 2).map(|at| u8::from_str_radix(&line[2 * at..2 * at + 2], 16).unwrap()),
            ),
        }
    }
    out
}

fn sections(golden: &str) -> Vec<(&str, Vec<u8>)> {
    let parts = golden.split("file ").skip(1);
    parts.map(|part| part.split_once('\n').unwrap()).map(|(name, text)| (name, unhex(text))).collect()
}

/// A folder with what the golden file says, whose log continues from its own id.
fn restore(dir: &Path) {
    for (name, bytes) in sections(GOLDEN) {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

fn expected() -> Vec<(u64, RecordType, Vec<u8>)> {
    let critical = RecordType { kind: 0x0102, version: 3, critical: true };
    let optional = RecordType { kind: 9, version: 1, critical: false };
    vec![(3, critical, b"third".to_vec()), (4, optional, vec![]), (5, critical, vec![0xab; 40])]
}

#[test]
fn what_was_written_then_is_read_now() {
    let dir = tempfile::tempdir().unwrap();
    restore(dir.path());
    let mut options = quick();
    options.block_bytes = 512;
    let (store, opened, found, _) = common::open(dir.path(), options);
    assert_eq!((opened.log_id, opened.epoch, opened.position.0), (LOG_ID, 2, 5));
    assert_eq!(found, Found { snapshot: Some((2, b"the state".to_vec())), list: expected() });
    let blob = pf_store::BlobRef { segment: 1, offset: 80, len: 7 };
    assert_eq!(store.blob_reader().read_checked(blob).unwrap(), b"payload");
}

#[test]
fn what_is_written_now_is_what_was_written_then() {
    let dir = tempfile::tempdir().unwrap();
    restore(dir.path());
    let mut options = quick();
    options.block_bytes = 512;
    // The golden log's id is kept by opening it; epoch 2 then repeats the same history.
    let (mut store, _, _, _) = common::open(dir.path(), options);
    assert_eq!(store.blob_put(77, Class::Ordinary, b"payload").unwrap().offset, 80);
    for (_, record_type, bytes) in &expected()[..2] {
        store.append(*record_type, Class::Ordinary, bytes).unwrap();
    }
    store.sync().unwrap();
    store.append(expected()[2].1, Class::Ordinary, &expected()[2].2).unwrap();
    store.close().unwrap();
    let mut text = String::new();
    for name in ["log-00000002-00000002", "payload-00000002"] {
        writeln!(text, "file {name}\n{}", hex(&std::fs::read(dir.path().join(name)).unwrap()).trim_end())
            .unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/epoch2.hex");
    if std::env::var_os("PF_GOLDEN_WRITE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(path).unwrap(), "the format on disk has changed");
}

#[test]
fn unknown_format_versions_are_refused_by_name() {
    for (file, newest) in [(FILES[0], 2), (FILES[2], 1)] {
        let dir = tempfile::tempdir().unwrap();
        restore(dir.path());
        let mut bytes = std::fs::read(dir.path().join(file)).unwrap();
        bytes[8] = newest + 1;
        std::fs::write(dir.path().join(file), bytes).unwrap();
        let error = common::try_open(dir.path(), quick()).map(|_| ()).unwrap_err();
        let StoreError::UnknownFormat { found, known, .. } = error else { panic!("{error}") };
        assert_eq!((found, known), (u32::from(newest) + 1, u32::from(newest)));
        assert!(error.to_string().contains(file));
        assert!(error.hint().is_some());
    }
}
