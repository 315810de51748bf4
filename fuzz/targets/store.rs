//! The broker's folder: a file of the log, of payloads or a snapshot with any bytes, as recovery and the store's own check read it. The first byte says which file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

const FILES: [&str; 3] = ["log-00000001-00000001", "payload-00000001", "snapshot-00000001-000000000002"];

/// The files of a good folder (`seeds` writes the same), so that the one that is changed is read in its place.
static FOLDER: LazyLock<(PathBuf, Vec<Vec<u8>>)> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let folder = base.join(format!("pf-fuzz-store-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let good = FILES.map(golden::file).to_vec();
    (folder, good)
});

#[path = "golden.rs"]
mod golden;

fuzz_target!(|data: &[u8]| {
    let Some((which, bytes)) = data.split_first() else { return };
    let (folder, good) = &*FOLDER;
    let which = usize::from(*which) % FILES.len();
    for (at, name) in FILES.iter().enumerate() {
        let content: &[u8] = if at == which { bytes } else { &good[at] };
        fs::write(folder.join(name), content).expect("write a file");
    }
    let mut records = 0u64;
    let _ = pf_store::tools::dump(folder, &mut |_: pf_store::Replay<'_>| {
        records += 1;
        Ok(())
    });
    let _ = pf_store::tools::check(folder);
});
