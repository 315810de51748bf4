//! Why there is, or is not, another block: as a person sees it, with the real binary.

use pf_tests::site::{Site, wait_for};
use std::fs;

#[test]
fn a_broken_set_up_pauses_the_endpoint_tells_everybody_and_resume_mends_it() {
    let site = Site::new();
    let root = site.path().join("root");
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("config.toml"), "[endpoints.local]\nfailures = 2\nbackoff = \"500ms\"\n").unwrap();
    let _ = site.pf(&["status"]).expect_code(0);
    // Where the folders of blocks should be is a file.
    let blocks = root.join("shared/blocks/local");
    fs::remove_dir_all(&blocks).unwrap();
    fs::write(&blocks, "").unwrap();
    let job = site.pf(&["submit", "--quiet", "--", "true"]).expect_code(0).stdout.trim().to_owned();
    let waited = site.pf(&["wait", "--timeout", "20s", &job]);
    let _ = waited.says(&[
        "endpoint local is paused",
        "2 blocks in a row died young",
        "shared/blocks/local",
        "pf endpoint resume local",
    ]);
    let status = site.pf(&["status"]).expect_code(0).stdout;
    assert!(status.contains("endpoint local is paused: 2 blocks in a row"), "{status}");
    let explained = site.pf(&["endpoint", "explain", "local"]).expect_code(0).stdout;
    for words in [
        "endpoint local is paused",
        "shape default (1 node, 1d 0h): 0 of 1 blocks; no other block",
        "node-hours: 0.00 used",
    ] {
        assert!(explained.contains(words), "{words:?} is not in {explained}");
    }
    let why = site.pf(&["job", "explain", &job]).expect_code(0).stdout;
    assert!(why.contains("there is no block") && why.contains("the endpoint is paused"), "{why}");
    fs::remove_file(&blocks).unwrap();
    fs::create_dir(&blocks).unwrap();
    let _ = site.pf(&["endpoint", "resume", "local"]).expect_code(0);
    let _ = site.pf(&["wait", &job]).expect_code(0);
}

#[test]
fn a_job_ends_at_its_limit_of_node_hours() {
    let site = Site::new();
    // Ten minutes is the shortest block: a hundredth of an hour is too little for any.
    let job = site.pf(&["submit", "--quiet", "--max-node-hours", "0.01", "--", "true"]).expect_code(0);
    let job = job.stdout.trim().to_owned();
    let why = wait_for("the reason", || {
        let why = site.pf(&["job", "explain", &job]).expect_code(0).stdout;
        why.contains("too few for a block").then_some(why)
    });
    assert!(why.contains("of the 0.01 node-hours that it may use 0.00 are used"), "{why}");
    // A block that another job asked for runs it.
    let other = site.pf(&["submit", "--quiet", "--", "true"]).expect_code(0).stdout.trim().to_owned();
    let _ = site.pf(&["wait", &other, &job]).expect_code(0);
}
