//! `pf site check --submit` on every scheduler that can be emulated, and on a real Slurm: what a job of one node sees of its node, of the four places and of the
//! way back, and what a probe that fails tells. (`e2e_sites.rs` does it without a scheduler.)

use pf_tests::emulated::{Emulated, Kind};
use pf_tests::site::{Ran, Site};
use pf_tests::slurm::Cluster;

/// What was found of one kind: verdict and words.
fn found(ran: &Ran, about: &str) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let lines = ran.json_lines();
    lines.iter().filter(|f| f["about"] == about).map(|f| (text(&f["verdict"]), text(&f["words"]))).collect()
}

/// The check of an endpoint whose node can do all that is needed.
fn check_good(site: &Site, endpoint: &str) -> Ran {
    let ran = site.pf(&["site", "check", "--submit", "--endpoint", endpoint, "--json"]).expect_code(0);
    let is = |about: &str, words: &str| assert_eq!(found(&ran, about), [("ok".into(), words.into())]);
    is("place shared", "the node sees it and can write");
    is("place output", "the node sees it and can write");
    is("place durable", "the node sees it");
    is("place local", "the node sees it");
    let (verdict, words) = found(&ran, "TMPDIR").remove(0);
    assert!(verdict == "ok" && words.ends_with("can be written"), "{words}");
    assert!(found(&ran, "python")[1].1.starts_with("on the node: "), "{}", ran.stdout);
    let network = found(&ran, "network");
    assert!(network.len() == 1 && network[0].0 == "ok", "{network:?}");
    let node =
        ran.json_lines().into_iter().find(|f| f["about"].as_str().is_some_and(|a| a.starts_with("node ")));
    let words = node.expect("facts of the node")["words"].as_str().unwrap_or_default().to_owned();
    for fact in [" cores, ", " threads, ", " GiB, ", "GPUs", "glibc 2."] {
        assert!(words.contains(fact), "{words}");
    }
    let places = ["durable", "shared", "local", "output"].map(|place| site.path().join("root").join(place));
    for entry in places.iter().filter_map(|place| place.read_dir().ok()).flatten().flatten() {
        let name = entry.file_name();
        assert!(!name.to_string_lossy().contains("probe"), "left behind: {name:?}");
    }
    ran
}

/// Seconds that the scheduler showed as left while the probe ran.
fn shown_left(walltime: &str) -> Option<u64> {
    walltime.split("the scheduler showed ").nth(1)?.split(' ').next()?.parse().ok()
}

fn a_node_looks_around(kind: Kind) {
    let emulated = Emulated::new(kind, 2);
    emulated.endpoint("x", &["interfaces=127.0.0.1"]);
    let ran = check_good(&emulated.site, "x");
    assert_eq!(found(&ran, "network"), [("ok".into(), "the node reaches 127.0.0.1".into())]);
    let walltime = found(&ran, "walltime").remove(0).1;
    match kind {
        Kind::OpenLava => assert!(walltime.starts_with("nothing tells"), "{walltime}"),
        _ => assert!(shown_left(&walltime).is_some_and(|s| (500..=600).contains(&s)), "{walltime}"),
    }
    assert_eq!(walltime.contains("COBALT_ENDTIME="), kind == Kind::Cobalt, "{walltime}");
    let jobs = emulated.jobs();
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    assert_eq!((jobs[0].code, &jobs[0].end), (Some(0), &None), "it ended by itself");
}

#[test]
fn on_openpbs() {
    a_node_looks_around(Kind::OpenPbs);
}

#[test]
fn on_openlava() {
    a_node_looks_around(Kind::OpenLava);
}

#[test]
fn on_ibm() {
    a_node_looks_around(Kind::Ibm);
}

#[test]
fn on_cobalt() {
    a_node_looks_around(Kind::Cobalt);
}

#[test]
fn on_slurm() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    // Those of its other networks the nodes do not reach, which would be told.
    let address = cluster.login_address().unwrap_or_else(|| "127.0.0.1".into());
    let interfaces = format!("interfaces={address}");
    cluster.endpoint(&site, "probed", &["queue=debug", "cores_per_node=1", "walltime=3m", &interfaces]);
    let ran = check_good(&site, "probed");
    let walltime = found(&ran, "walltime").remove(0).1;
    assert!(shown_left(&walltime).is_some_and(|s| (100..=180).contains(&s)), "{walltime}");
}

/// What goes wrong on the way is told in the words of whom it concerns, and nothing stays in the queue.
#[test]
fn a_probe_that_fails_says_why() {
    for (settings, code, words) in [
        (["interfaces=127.0.0.1", "queue=nosuch"], 3, "set queue"),
        (["interfaces=127.0.0.1", "setup=echo no module here >&2; exit 3"], 1, "no module here"),
    ] {
        let emulated = Emulated::new(Kind::OpenPbs, 1);
        emulated.endpoint("x", &settings);
        let ran = emulated.site.pf(&["site", "check", "--submit", "--endpoint", "x"]).expect_code(code);
        ran.says(&[words]);
        assert!(emulated.live().is_empty(), "{:?}", emulated.jobs());
    }
    let emulated = Emulated::new(Kind::OpenLava, 1);
    emulated.set("down_nodes", serde_json::json!(["n1"]));
    emulated.endpoint("x", &["interfaces=127.0.0.1"]);
    let check = ["site", "check", "--submit", "--endpoint", "x", "--timeout", "1s"];
    emulated.site.pf(&check).expect_code(7).says(&["did not run within 1 s", "--timeout"]);
    assert!(emulated.live().is_empty(), "it was cancelled: {:?}", emulated.jobs());
}
