//! Streams of outcomes: order, cursors, pulls, ends.

use super::world::*;
use crate::*;
use pf_protocol::job::JobSpec;
use pf_protocol::outcome::OutcomeKind;
use pf_protocol::*;

fn subscribe(w: &mut World, of: StreamOf, after: u64, follow: bool) -> u64 {
    let subscription = 100 + w.broker.position() * 10 + after;
    w.ask(Request::Subscribe { subscription, of, after, follow }).unwrap();
    w.feed(Input::Pull { subscription });
    subscription
}

fn rows(batch: &StreamBatch) -> Vec<(JobId, u32)> {
    batch.parts.iter().flat_map(|p| p.rows.iter().map(|r| (p.job, r.index))).collect()
}

#[test]
fn a_group_sees_all_its_jobs_in_the_order_of_recording_once_synced() {
    let mut w = World::new();
    let conn = w.relay();
    let spec = JobSpec { group: 9, ..command() };
    let (a, b) = (w.submit(spec.clone(), 2), w.submit(spec, 1));
    let other = w.submit(command(), 1);
    let id = subscribe(&mut w, StreamOf::Group(9), 0, true);
    assert!(w.streams.is_empty());
    w.auto_sync = false;
    w.report(conn, vec![outcome(b, 0, OutcomeKind::Value), outcome(other, 0, OutcomeKind::Value)]);
    w.report(conn, vec![outcome(a, 1, OutcomeKind::Value)]);
    assert!(w.streams.is_empty());
    assert_eq!(w.broker.shown(), 0);
    w.auto_sync = true;
    w.feed(Input::Synced { position: w.disk.records.len() as u64 });
    let (to, batch) = w.streams.pop().unwrap();
    assert_eq!((to, rows(&batch), batch.end), (id, vec![(b, 0), (a, 1)], false));
    assert_eq!(batch.seq, 3);
    w.report(conn, vec![outcome(a, 0, OutcomeKind::Value)]);
    assert!(w.streams.is_empty(), "one batch for each pull");
    w.feed(Input::Pull { subscription: id });
    assert_eq!(rows(&w.streams[0].1), [(a, 0)]);
}

#[test]
fn a_cursor_in_the_middle_of_a_chunk_goes_on_there() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 4);
    let report =
        [0, 1, 2, 3].map(|i| (outcome(job, i, OutcomeKind::Value), &b"0123456789"[..i as usize + 1]));
    w.report_values(conn, report.to_vec());
    subscribe(&mut w, StreamOf::Job(job), 2, false);
    let (_, batch) = w.streams.pop().unwrap();
    assert_eq!(rows(&batch), [(job, 2), (job, 3)]);
    let part = &batch.parts[0];
    let values = part.rows_with_values(&w.disk.read(part.values)).unwrap();
    let values: Vec<&[u8]> = values.iter().map(|(_, value)| &value[..]).collect();
    assert_eq!(values, [&b"012"[..], b"0123"]);
    assert_eq!(part.first_detail, 2);
    subscribe(&mut w, StreamOf::Job(job), 4, false);
    assert!(w.streams.pop().unwrap().1.end);
}

#[test]
fn the_stream_of_a_job_ends_with_it() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 1);
    let id = subscribe(&mut w, StreamOf::Job(job), 0, true);
    w.report(conn, vec![outcome(job, 0, OutcomeKind::Exit)]);
    w.feed(Input::Pull { subscription: id });
    let ends: Vec<bool> = w.streams.iter().map(|(_, b)| b.end).collect();
    assert_eq!(ends, [false, true]);
    let part = &w.streams[0].1.parts[0];
    let details = decode_details(&w.disk.read(part.details.unwrap())).unwrap();
    assert_eq!(details[0].error.as_ref().unwrap().message, "exit happened\nmore");
}

#[test]
fn a_batch_has_a_bound() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 10_000);
    w.report(conn, (0..10_000).map(|i| outcome(job, i, OutcomeKind::Value)).collect());
    let id = subscribe(&mut w, StreamOf::Job(job), 0, false);
    for _ in 0..3 {
        w.feed(Input::Pull { subscription: id });
    }
    let counts: Vec<usize> = w.streams.iter().map(|(_, b)| rows(b).len()).collect();
    assert_eq!(counts, [4_096, 4_096, 1_808, 0]);
    assert!(w.streams[3].1.end);
    assert_eq!(w.streams[2].1.seq, 10_000);
}

#[test]
fn a_cursor_of_the_future_is_refused_and_streams_survive_a_restart() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 2);
    w.report(conn, vec![outcome(job, 0, OutcomeKind::Value)]);
    let ahead = Request::Subscribe { subscription: 1, of: StreamOf::Group(0), after: 2, follow: true };
    assert_eq!(w.ask(ahead).unwrap_err().code, Code::BadRequest);
    w.restart();
    subscribe(&mut w, StreamOf::Group(0), 0, true);
    assert_eq!(rows(&w.streams[0].1), [(job, 0)]);
}
