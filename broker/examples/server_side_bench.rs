//! CPU of the broker a task, every task synced: JSON lines as `scripts/bench` prints them.
//!
//! The broker is the real one (log on the folder given, HTTP on its socket); its relay runs nothing, so that what is measured is accept, log,
//! assign, record and stream, with the client's own share in it.

#[path = "../tests/common/mod.rs"]
mod common;

use bytes::Bytes;
use common::client::Client;
use common::{RelayIs, World, job, key};
use nix::sys::resource::{UsageWho, getrusage};
use pf_broker::columns::{OutcomeFrame, encode_tasks};
use std::time::Instant;

const TASKS: u32 = 500_000;
const POSTS: u32 = 2_000;
const COLUMNS: &[(&str, &str)] = &[("Content-Type", "application/vnd.pilotfish.tasks")];

fn cpu_us() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("rusage of this process");
    let us = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 * 1e6 + t.tv_usec() as f64;
    us(usage.user_time()) + us(usage.system_time())
}

fn print(metric: &str, value: f64, unit: &str, n: u32) {
    println!(r#"{{"metric":"{metric}","value":{value:.2},"unit":"{unit}","n":{n}}}"#);
}

fn read(client: &mut Client, count: usize) {
    let (mut rest, mut seen) = (Vec::new(), 0);
    while seen < count {
        rest.extend(client.chunk().expect("an open stream"));
        let bytes = Bytes::from(std::mem::take(&mut rest));
        let mut at = 0;
        while at < bytes.len() {
            let Some((frame, len)) = OutcomeFrame::decode(&bytes.slice(at..)).expect("frames") else { break };
            (seen, at) = (seen + frame.count, at + len);
        }
        rest = bytes[at..].to_vec();
    }
}

fn main() {
    let folder = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let root = tempfile::tempdir_in(folder).expect("a folder for the log");
    let world = World::start(root.path(), RelayIs::Working);
    let (mut client, mut follower) = (world.client(), world.client());
    follower.send("GET", "/v1/outcomes?group=5&follow=1&format=columns", &[], b"");
    follower.head().expect("a stream");

    let (begun, cpu) = (Instant::now(), cpu_us());
    let id = client.call("PUT", &format!("/v1/jobs/{}", key(1)), &job(0, true)).ok()["job"].clone();
    let body = encode_tasks(1_000, &[100; 1_000], &vec![7; 100_000]);
    for first in (0..TASKS).step_by(1_000) {
        client.call_with("POST", &format!("/v1/jobs/{id}/tasks?first={first}"), COLUMNS, &body).ok();
    }
    read(&mut follower, TASKS as usize);
    print("broker_cpu_per_task", (cpu_us() - cpu) / f64::from(TASKS), "us", TASKS);
    print("broker_tasks_per_s", f64::from(TASKS) / begun.elapsed().as_secs_f64(), "1/s", TASKS);

    let mut trips = Vec::new();
    let one = encode_tasks(1, &[3], b"abc");
    let cpu = cpu_us();
    for n in 0..POSTS {
        let begun = Instant::now();
        client.call_with("POST", &format!("/v1/jobs/{id}/tasks?first={}", TASKS + n), COLUMNS, &one).ok();
        read(&mut follower, 1);
        trips.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    print("broker_cpu_per_single_task", (cpu_us() - cpu) / f64::from(POSTS), "us", POSTS);
    trips.sort_by(f64::total_cmp);
    print("broker_round_trip_median", trips[trips.len() / 2], "us", POSTS);

    let (begun, cpu) = (Instant::now(), cpu_us());
    for _ in 0..POSTS {
        client.call("GET", "/v1/limits", b"").ok();
    }
    print("http_cpu_per_request", (cpu_us() - cpu) / f64::from(POSTS), "us", POSTS);
    print("http_request", begun.elapsed().as_secs_f64() * 1e6 / f64::from(POSTS), "us", POSTS);
}
