//! The life of jobs over the API, with a relay that runs nothing, and a broker that is killed.

use crate::common::client::Client;
use crate::common::{RelayIs, World, eventually, job, key};
use bytes::Bytes;
use pf_broker::columns::{OutcomeFrame, encode_tasks};
use pf_protocol::job::content_hash;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

const COLUMNS: &[(&str, &str)] = &[("Content-Type", "application/vnd.pilotfish.tasks")];

/// Reads frames of an open outcome stream until `count` outcomes have come.
fn read_outcomes(client: &mut Client, count: usize) -> (Vec<(u64, u32, Vec<u8>)>, String) {
    let (mut rest, mut seen, mut cursor) = (Vec::new(), Vec::new(), String::new());
    while seen.len() < count {
        rest.extend(client.chunk().expect("the stream goes on"));
        let bytes = Bytes::from(std::mem::take(&mut rest));
        let mut at = 0;
        while let Some((frame, len)) = OutcomeFrame::decode(&bytes.slice(at..)).unwrap() {
            at += len;
            cursor = format!("{:x}-{:x}", frame.log_id, frame.seq);
            seen.extend(frame.records().map(|r| (r.job, r.index, r.value.to_vec())));
            if at == bytes.len() {
                break;
            }
        }
        rest = bytes[at..].to_vec();
    }
    (seen, cursor)
}

fn follow(client: &mut Client, query: &str) {
    client.send("GET", &format!("/v1/outcomes?{query}&format=columns"), &[], b"");
    let (status, head) = client.head().unwrap();
    assert_eq!(status, 200, "{head}");
}

fn number(job: &serde_json::Value) -> u64 {
    job.as_u64().unwrap()
}

#[test]
fn the_same_put_is_the_same_job_and_another_body_is_a_conflict() {
    let root = tempfile::tempdir().unwrap();
    let world = World::start(root.path(), RelayIs::Idle);
    let mut client = world.client();
    let path = format!("/v1/jobs/{}", key(1));
    let first = client.call("PUT", &path, &job(3, false)).ok();
    assert_eq!(first["repeated"], false);
    let again = client.call("PUT", &path, &job(3, false)).ok();
    assert_eq!((again["repeated"].clone(), again["job"].clone()), (true.into(), first["job"].clone()));
    assert_eq!(client.call("PUT", &path, &job(4, false)).code().0, 409);
    assert_eq!(client.call("GET", "/v1/jobs", b"").ok()["jobs"].as_array().unwrap().len(), 1);
}

#[test]
fn jobs_are_found_by_all_of_the_labels_that_are_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let world = World::start(root.path(), RelayIs::Idle);
    let mut client = world.client();
    for (n, labels) in [(1, r#"{"a":"1","b":"2"}"#), (2, r#"{"a":"1"}"#)] {
        let body = format!(
            r#"{{"spec":{{"labels":{labels},"endpoints":["local"],"body":{{"command":{{"argv":["true"]}}}}}},"count":1}}"#
        );
        client.call("PUT", &format!("/v1/jobs/{}", key(n)), body.as_bytes()).ok();
    }
    for (query, found) in [("label=a%3D1", 2), ("label=a=1&label=b=2", 1), ("label=a=1&label=b=1", 0)] {
        let jobs = client.call("GET", &format!("/v1/jobs?{query}"), b"").ok();
        assert_eq!(jobs["jobs"].as_array().unwrap().len(), found, "{query}");
    }
}

#[test]
fn an_append_that_is_sent_again_makes_no_second_tasks() {
    let root = tempfile::tempdir().unwrap();
    let world = World::start(root.path(), RelayIs::Idle);
    let mut client = world.client();
    let id = client.call("PUT", &format!("/v1/jobs/{}", key(1)), &job(0, true)).ok()["job"].clone();
    let path = |first: u32| format!("/v1/jobs/{id}/tasks?first={first}");
    let body = encode_tasks(3, &[1, 0, 2], b"abc");
    for _ in 0..2 {
        assert_eq!(client.call_with("POST", &path(0), COLUMNS, &body).ok()["tasks"], 3);
    }
    assert_eq!(client.call_with("POST", &path(5), COLUMNS, &body).code().0, 409);
    assert_eq!(client.call_with("POST", &path(3), COLUMNS, &body).ok()["tasks"], 6);
    client.call("POST", &format!("/v1/jobs/{id}/close"), b"").ok();
    assert_eq!(client.call_with("POST", &path(6), COLUMNS, &body).code().0, 409);
    let shown = client.call("GET", &format!("/v1/jobs/{id}"), b"").ok();
    assert_eq!((shown["counts"]["total"].clone(), shown["open"].clone()), (6.into(), false.into()));
}

#[test]
fn a_follower_sees_every_outcome_once_and_goes_on_from_its_cursor() {
    let root = tempfile::tempdir().unwrap();
    let world = World::start(root.path(), RelayIs::Working);
    let (mut client, mut follower) = (world.client(), world.client());
    follow(&mut follower, "group=5&follow=1");
    let a = number(&client.call("PUT", &format!("/v1/jobs/{}", key(1)), &job(1_000, false)).ok()["job"]);
    let (seen, cursor) = read_outcomes(&mut follower, 1_000);
    assert!(seen.iter().all(|(id, index, value)| *id == a && *value == index.to_string().into_bytes()));
    let mut indexes: Vec<u32> = seen.iter().map(|s| s.1).collect();
    indexes.sort_unstable();
    assert_eq!(indexes, (0..1_000).collect::<Vec<_>>());
    drop(follower);
    let b = number(&client.call("PUT", &format!("/v1/jobs/{}", key(2)), &job(10, false)).ok()["job"]);
    let mut follower = world.client();
    follow(&mut follower, &format!("group=5&follow=1&after={cursor}"));
    let (seen, _) = read_outcomes(&mut follower, 10);
    assert!(seen.iter().all(|s| s.0 == b), "{seen:?}");

    let lines = client.call("GET", &format!("/v1/outcomes?job={b}"), b"");
    let lines: Vec<serde_json::Value> = lines
        .body
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 10);
    assert_eq!(lines[0]["state"], "value");
    assert_eq!(lines[0]["node"], "node0");
    assert_eq!(lines[0]["value"], lines[0]["label"].to_string());
}

#[test]
fn values_rows_and_waiting() {
    let root = tempfile::tempdir().unwrap();
    let world = World::start(root.path(), RelayIs::Working);
    let mut client = world.client();
    let id = client.call("PUT", &format!("/v1/jobs/{}", key(1)), &job(20, false)).ok()["job"].clone();
    let shown = client.call("GET", &format!("/v1/jobs/j{id}?wait=60"), b"").ok();
    assert_eq!(shown["state"], "ok");
    assert_eq!(shown["counts"]["ok"], 20);
    assert_eq!(client.call("GET", &format!("/v1/jobs/{id}/tasks/7/value"), b"").body, b"7");
    assert_eq!(client.call("GET", &format!("/v1/jobs/{id}/tasks/7"), b"").ok()["task"], format!("j{id}.7"));
    assert_eq!(
        client.call("GET", &format!("/v1/jobs/{id}/tasks/70"), b"").code(),
        (404, "unknown_task".into())
    );
    let rows = client.call("GET", &format!("/v1/jobs/{id}/tasks?from=5&limit=3"), b"").ok();
    assert_eq!(rows["tasks"].as_array().unwrap().len(), 3);
    client.call("DELETE", &format!("/v1/jobs/{id}"), b"").ok();
    assert_eq!(client.call("GET", &format!("/v1/jobs/{id}"), b"").code().0, 404);
}

#[test]
fn large_payloads_are_put_and_got_as_streams() {
    let root = tempfile::tempdir().unwrap();
    let world = World::start(root.path(), RelayIs::Absent);
    let mut client = world.client();
    let id = client.call("PUT", &format!("/v1/jobs/{}", key(1)), &job(0, true)).ok()["job"].clone();
    let payload: Vec<u8> = (0..1_000_000u32).map(|i| (i / 1_000) as u8).collect();
    let path = format!("/v1/jobs/{id}/payloads/{}", content_hash(&payload));
    assert_eq!(client.call("GET", &path, b"").code(), (404, "unknown_payload".into()));
    for _ in 0..2 {
        assert_eq!(client.call("PUT", &path, &payload).ok()["bytes"], 1_000_000);
    }
    assert!(client.call("GET", &path, b"").body == payload);
    let other = format!("/v1/jobs/{id}/payloads/{}", content_hash(b"other"));
    assert_eq!(client.call("PUT", &other, &payload).code(), (400, "bad_request".into()), "another hash");
    assert_eq!(client.call("PUT", &other, b"small").code(), (400, "bad_request".into()));
    let foreign = format!("/v1/jobs/77/payloads/{}", content_hash(&payload));
    assert_eq!(client.call("PUT", &foreign, &payload).code(), (404, "unknown_job".into()));
    client
        .send_raw(format!("PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n").as_bytes())
        .unwrap();
    assert_eq!(client.answer().unwrap().code(), (413, "too_large".into()));
    let mut client = world.client();
    client
        .send_raw(format!("PUT {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").as_bytes())
        .unwrap();
    assert_eq!(client.answer().unwrap().code().0, 411);
    // One that breaks off leaves the broker as it was.
    let mut client = world.client();
    let cut = format!("PUT {other} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n");
    client.send_raw(cut.as_bytes()).unwrap();
    client.send_raw(&payload[..600_000]).unwrap();
    drop(client);
    assert!(world.client().call("GET", &path, b"").body == payload);
}

#[test]
fn functions_are_kept_by_their_hash() {
    let root = tempfile::tempdir().unwrap();
    let world = World::start(root.path(), RelayIs::Absent);
    let mut client = world.client();
    // hashlib.blake2b(b"\x01\x01m:f", digest_size=32).hexdigest()
    let id = "5f36c82691a31878679695fb8f0595b140875bd42c17138af2d3a38a3662915b";
    let headers = [("X-Pilotfish-Kind", "reference"), ("X-Pilotfish-Name", "m.f")];
    let path = format!("/v1/functions/{id}");
    assert_eq!(client.call_with("PUT", &path, &headers, b"m:f").ok()["function"], id);
    assert_eq!(client.call_with("PUT", &path, &headers, b"m:g").code().0, 400);
    assert_eq!(client.call_with("PUT", &path, &[], b"m:f").code().0, 400);
    let answer = client.call("GET", &path, b"");
    assert_eq!(answer.body, b"m:f");
    assert!(answer.head.to_lowercase().contains("x-pilotfish-kind: reference"), "{}", answer.head);
    assert_eq!(client.call("GET", "/v1/functions", b"").ok()["functions"][0]["name"], "m.f");
}

/// A follower that does not read costs a bounded amount of memory and is fed again when it does.
#[test]
fn a_slow_reader_loses_nothing() {
    let root = tempfile::tempdir().unwrap();
    let world = World::start(root.path(), RelayIs::Working);
    let (mut client, mut slow) = (world.client(), world.client());
    follow(&mut slow, "group=5&follow=1");
    let id = client.call("PUT", &format!("/v1/jobs/{}", key(1)), &job(100_000, false)).ok()["job"].clone();
    let shown = client.call("GET", &format!("/v1/jobs/{id}?wait=20"), b"").ok();
    assert_eq!(shown["counts"]["ok"], 100_000, "{shown}");
    let (seen, _) = read_outcomes(&mut slow, 100_000);
    let mut indexes: Vec<u32> = seen.iter().map(|s| s.1).collect();
    indexes.sort_unstable();
    assert!(indexes.iter().copied().eq(0..100_000));
}

/// Run by `a_killed_broker_comes_back_with_what_it_acknowledged`, as a process of its own.
#[test]
fn child_broker() {
    let Ok(root) = std::env::var("PF_TEST_CHILD_ROOT") else { return };
    let world = World::start(Path::new(&root), RelayIs::Working);
    println!("\nserving");
    // Until it is killed, or its parent is gone.
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
    drop(world);
}

#[test]
fn a_killed_broker_comes_back_with_what_it_acknowledged() {
    let root = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "jobs::child_broker", "--nocapture", "--test-threads=1"])
        .env("PF_TEST_CHILD_ROOT", root.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("serving")));
    let mut client = Client::unix(&root.path().join("run/broker.sock"));
    let accepted = client.call("PUT", &format!("/v1/jobs/{}", key(1)), &job(100_000, true)).ok();
    let id = accepted["job"].clone();
    let shown = eventually("some outcomes", || {
        let shown = client.call("GET", &format!("/v1/jobs/{id}"), b"").ok();
        (shown["counts"]["ok"].as_u64().unwrap() > 10_000).then_some(shown)
    });
    child.kill().unwrap();
    child.wait().unwrap();

    let world = World::start(root.path(), RelayIs::Absent);
    let mut client = world.client();
    let after = client.call("GET", &format!("/v1/jobs/{id}"), b"").ok();
    assert_eq!(after["counts"]["total"], 100_000);
    assert!(after["counts"]["ok"].as_u64() >= shown["counts"]["ok"].as_u64(), "{after} {shown}");
    let again = client.call("PUT", &format!("/v1/jobs/{}", key(1)), &job(100_000, true)).ok();
    assert_eq!((again["repeated"].clone(), again["job"].clone()), (true.into(), id.clone()));
    world.stop();

    // A third life, with a relay: the rest runs, and every outcome is there once.
    let world = World::start(root.path(), RelayIs::Working);
    let mut client = world.client();
    client.call("POST", &format!("/v1/jobs/{id}/close"), b"").ok();
    let ended = client.call("GET", &format!("/v1/jobs/{id}?wait=120"), b"").ok();
    assert_eq!((ended["state"].clone(), ended["counts"]["ok"].clone()), ("ok".into(), 100_000.into()));
    let mut all = world.client();
    follow(&mut all, &format!("job={id}&follow=0"));
    let (seen, _) = read_outcomes(&mut all, 100_000);
    let mut indexes: Vec<u32> = seen.iter().map(|s| s.1).collect();
    indexes.sort_unstable();
    assert!(indexes.iter().copied().eq(0..100_000));
}
