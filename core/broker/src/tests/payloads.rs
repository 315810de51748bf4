//! Large payloads: put by clients, wanted by relays, pulled from relays, and what comes of peers that do it wrong.

use super::world::*;
use crate::limits::UPLOADS_MAX;
use crate::*;
use bytes::Bytes;
use pf_protocol::job::{Body, Command, JobSpec, content_hash};
use pf_protocol::limits::{INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX, PIECE_BYTES, WANTS_MAX};
use pf_protocol::message::*;
use pf_protocol::outcome::{Outcome, OutcomeBatch, OutcomeKind};
use pf_protocol::payload::{LARGE, PayloadRef, REF_BYTES};
use pf_protocol::*;

fn on_stdin() -> JobSpec {
    let command = Command { argv: vec!["cat".into()], item_on_stdin: true, ..Command::default() };
    JobSpec { body: Body::Command(command), ..JobSpec::default() }
}

fn bytes(salt: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 1_000) as u8 ^ salt).collect()
}

fn name(payload: &[u8]) -> PayloadRef {
    PayloadRef { hash: content_hash(payload), len: payload.len() as u64 }
}

fn named(payloads: &[&[u8]]) -> Tasks {
    let blob: Vec<u8> = payloads.iter().flat_map(|p| name(p).to_bytes()).collect();
    let lens = vec![LARGE | REF_BYTES as u32; payloads.len()];
    Tasks { count: payloads.len() as u32, lens, blob: blob.into() }
}

fn put(w: &mut World, job: JobId, payload: &[u8]) -> Result<Reply, Refusal> {
    let mut last = Ok(Reply::Done);
    for (nth, piece) in payload.chunks(PIECE_BYTES).enumerate() {
        let offset = (nth * PIECE_BYTES) as u64;
        let bytes = Bytes::copy_from_slice(piece);
        last = w.ask(Request::PutPiece { job, payload: name(payload), offset, bytes });
    }
    last
}

fn open_job(w: &mut World) -> JobId {
    w.try_submit(on_stdin(), Tasks::default(), true).unwrap()
}

fn pieces(w: &World, conn: u64) -> Vec<Piece> {
    let pieces = w.got(conn).got.iter().filter_map(|m| match m {
        Message::Piece(piece) => Some(piece.clone()),
        _ => None,
    });
    pieces.collect()
}

fn wants(w: &World, conn: u64) -> Vec<Want> {
    let wants = w.got(conn).got.iter().filter_map(|m| match m {
        Message::Want(want) => Some(*want),
        _ => None,
    });
    wants.collect()
}

/// The relay tells of an outcome whose value it only names.
fn report_named(w: &mut World, conn: u64, outcome: Outcome, value: &[u8]) {
    let outcome = Outcome { value_len: LARGE | value.len() as u32, ..outcome };
    let blob = Bytes::copy_from_slice(value);
    let outcomes = vec![outcome];
    w.report_batch(
        conn,
        OutcomeBatch { node: "n1".into(), seq: 1, outcomes, blob, ..OutcomeBatch::default() },
    );
}

/// The relay sends what was wanted of this value, from want number `from` on; how many wants there were.
fn answer(w: &mut World, conn: u64, value: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(&Want { job, hash, offset }) = wants(w, conn).get(at) {
        let start = offset as usize;
        let bytes = Bytes::copy_from_slice(&value[start..(start + PIECE_BYTES).min(value.len())]);
        w.say(conn, Piece { job, hash, offset, bytes, fault: String::new() });
        at += 1;
    }
    at
}

fn lies_at_the_broker(w: &mut World, job: JobId, payload: &[u8]) -> bool {
    match w.ask(Request::Payload { job, hash: name(payload).hash }) {
        Ok(Reply::Payload { len, blobs }) => {
            let found: Vec<u8> = blobs.iter().flat_map(|blob| w.disk.read(*blob).to_vec()).collect();
            len == payload.len() as u64 && found == payload
        }
        _ => false,
    }
}

#[test]
fn an_item_is_put_named_and_given_to_the_relay_in_pieces() {
    let mut w = World::new();
    let job = open_job(&mut w);
    let item = bytes(1, 2 * PIECE_BYTES + 77);
    assert_eq!(put(&mut w, job, &item), Ok(Reply::PieceTaken { upto: item.len() as u64 }));
    // Again: nothing is kept twice.
    let kept = w.disk.blobs.len();
    put(&mut w, job, &item).unwrap();
    assert_eq!(w.disk.blobs.len(), kept);
    w.ask(Request::Append { job, first: 0, tasks: named(&[&item, &item]) }).unwrap();
    w.restart();
    let conn = w.relay();
    let batch = &w.got(conn).assigned()[0];
    assert_eq!(batch.lens, [LARGE | 40, LARGE | 40]);
    assert_eq!(PayloadRef::read(&batch.blob[..40]), Some(name(&item)));
    for offset in [0, PIECE_BYTES, 2 * PIECE_BYTES] {
        w.say(conn, Want { job, hash: name(&item).hash, offset: offset as u64 });
    }
    let got: Vec<u8> = pieces(&w, conn).iter().flat_map(|p| p.bytes.to_vec()).collect();
    assert!(got == item);
}

#[test]
fn pieces_that_do_not_fit_are_refused() {
    let mut w = World::new();
    let job = open_job(&mut w);
    let item = bytes(2, PIECE_BYTES + 10);
    let mut refused = |payload, offset, bytes: &[u8]| {
        let bytes = Bytes::copy_from_slice(bytes);
        w.ask(Request::PutPiece { job, payload, offset, bytes }).map_err(|r| r.code)
    };
    let whole = name(&item);
    assert_eq!(refused(whole, PIECE_BYTES as u64, &item[PIECE_BYTES..]), Err(Code::Conflict), "not begun");
    assert_eq!(refused(whole, 0, &item[..5]), Err(Code::BadRequest), "cut");
    assert_eq!(refused(whole, 0, &item), Err(Code::BadRequest), "too long");
    let far = PayloadRef { len: PAYLOAD_BYTES_MAX as u64 + 1, ..whole };
    assert_eq!(refused(far, 0, &item[..PIECE_BYTES]), Err(Code::TooLarge));
    let small = PayloadRef { len: 5, ..whole };
    assert_eq!(refused(small, 0, &item[..5]), Err(Code::BadRequest), "it belongs into the append");
    let other = PayloadRef { hash: ContentHash([9; 32]), ..whole };
    assert_eq!(refused(other, 0, &item[..PIECE_BYTES]), Ok(Reply::PieceTaken { upto: PIECE_BYTES as u64 }));
    assert_eq!(
        refused(other, PIECE_BYTES as u64, &item[PIECE_BYTES..]),
        Err(Code::BadRequest),
        "another hash"
    );
    let append = Request::Append { job, first: 0, tasks: named(&[&item]) };
    assert_eq!(w.ask(append).map_err(|r| r.code), Err(Code::UnknownPayload));
    w.ask(Request::Close { job }).unwrap();
    assert_eq!(put(&mut w, job, &item).map_err(|r| r.code), Err(Code::Conflict), "nobody could name it");
}

#[test]
fn a_name_that_is_none_and_an_item_that_is_too_large_for_a_request_are_refused() {
    let mut w = World::new();
    let job = open_job(&mut w);
    let mut append = |lens: Vec<u32>, blob: Vec<u8>| {
        let tasks = Tasks { count: lens.len() as u32, lens, blob: blob.into() };
        w.ask(Request::Append { job, first: 0, tasks }).map_err(|r| r.code)
    };
    assert_eq!(append(vec![LARGE | 4], vec![0; 4]), Err(Code::BadRequest));
    assert_eq!(append(vec![LARGE | 40], vec![0; 40]), Err(Code::BadRequest), "of length 0");
    assert_eq!(append(vec![INLINE_BYTES_MAX as u32 + 1], vec![0; INLINE_BYTES_MAX + 1]), Err(Code::TooLarge));
    let argument = w.try_submit(command(), World::items(&[&"x".repeat(130 << 10)]), false);
    assert_eq!(argument.map_err(|r| r.code), Err(Code::TooLarge), "execve would refuse it");
}

#[test]
fn uploads_that_were_given_up_make_room() {
    let mut w = World::new();
    let job = open_job(&mut w);
    let item = bytes(3, PIECE_BYTES + 1);
    for n in 0..=UPLOADS_MAX {
        let hash = ContentHash([(n % 251) as u8, (n / 251) as u8].repeat(16).try_into().unwrap());
        let payload = PayloadRef { hash, len: item.len() as u64 };
        let bytes = Bytes::copy_from_slice(&item[..PIECE_BYTES]);
        w.now += 1;
        w.ask(Request::PutPiece { job, payload, offset: 0, bytes }).unwrap();
        assert!(w.broker.uploads.len() <= UPLOADS_MAX);
    }
}

#[test]
fn a_payload_of_somebody_else_is_not_there() {
    let mut w = World::new();
    let job = open_job(&mut w);
    let item = bytes(4, PIECE_BYTES + 1);
    put(&mut w, job, &item).unwrap();
    let other = Caller { owner: OwnerId(2), is_broker_owner: false };
    let hash = name(&item).hash;
    assert_eq!(w.ask_as(other, Request::Payload { job, hash }).map_err(|r| r.code), Err(Code::UnknownJob));
    let bytes = Bytes::copy_from_slice(&item[..PIECE_BYTES]);
    let piece = Request::PutPiece { job, payload: name(&item), offset: 0, bytes };
    assert_eq!(w.ask_as(other, piece).map_err(|r| r.code), Err(Code::UnknownJob));
}

#[test]
fn a_relay_gets_pieces_of_its_own_endpoint_only_and_not_too_many_at_a_time() {
    let mut w = World::new();
    w.ask(Request::PutEndpoint { name: "other".into(), relay_key: None }).unwrap();
    let spec = JobSpec { endpoints: vec!["other".into()], ..on_stdin() };
    let foreign = w.try_submit(spec, Tasks::default(), true).unwrap();
    let item = bytes(5, PIECE_BYTES + 1);
    put(&mut w, foreign, &item).unwrap();
    let conn = w.relay();
    let hash = name(&item).hash;
    for want in [
        Want { job: foreign, hash, offset: 0 },
        Want { job: JobId(99), hash, offset: 0 },
        Want { job: foreign, hash: ContentHash([1; 32]), offset: 7 },
    ] {
        w.say(conn, want);
    }
    assert!(pieces(&w, conn).iter().all(|p| p.bytes.is_empty() && p.fault == "the broker has no such piece"));
    assert_eq!(pieces(&w, conn).len(), 3);
    // Wants that are not answered pile up only so far.
    w.load_waits = true;
    w.try_submit(JobSpec { endpoints: vec!["local".into()], ..on_stdin() }, Tasks::default(), true).unwrap();
    let own = JobId(2);
    put(&mut w, own, &item).unwrap();
    for _ in 0..=WANTS_MAX {
        w.say(conn, Want { job: own, hash, offset: 0 });
    }
    assert_eq!(w.got(conn).refused.as_ref().map(|r| r.code.as_str()), Some("unexpected"));
}

#[test]
fn a_value_is_pulled_before_its_outcome_is_recorded_and_confirmed() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 3);
    let value = bytes(6, 20 * PIECE_BYTES + 3);
    report_named(&mut w, conn, outcome(job, 0, OutcomeKind::Value), &name(&value).to_bytes());
    w.report(conn, vec![outcome(job, 1, OutcomeKind::Value)]);
    assert_eq!(wants(&w, conn).len(), WANTS_MAX);
    assert_eq!(
        (w.counts(job).ok, w.got(conn).confirmed()),
        (1, None),
        "results do not wait, confirmations do"
    );
    let given = answer(&mut w, conn, &value, 0);
    assert_eq!(given, 21);
    assert_eq!((w.counts(job).ok, w.got(conn).confirmed()), (2, Some(2)));
    let view = w.task(job, 0);
    assert!(view.is_large && lies_at_the_broker(&mut w, job, &value));
    // Another task with the same value: nothing is pulled again.
    report_named(&mut w, conn, outcome(job, 2, OutcomeKind::Value), &name(&value).to_bytes());
    assert_eq!((w.counts(job).ok, wants(&w, conn).len(), w.got(conn).confirmed()), (3, given, Some(3)));
    w.restart();
    assert!(lies_at_the_broker(&mut w, job, &value));
}

#[test]
fn a_value_is_pulled_anew_in_the_next_session() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 1);
    let value = bytes(7, 3 * PIECE_BYTES);
    report_named(&mut w, conn, outcome(job, 0, OutcomeKind::Value), &name(&value).to_bytes());
    let Want { hash, .. } = wants(&w, conn)[0];
    let bytes = Bytes::copy_from_slice(&value[..PIECE_BYTES]);
    w.say(conn, Piece { job, hash, offset: 0, bytes, fault: String::new() });
    w.restart();
    let conn = w.relay();
    report_named(&mut w, conn, outcome(job, 0, OutcomeKind::Value), &name(&value).to_bytes());
    assert_eq!(wants(&w, conn)[0].offset, 0);
    answer(&mut w, conn, &value, 0);
    assert_eq!(w.counts(job).ok, 1);
    assert!(lies_at_the_broker(&mut w, job, &value));
}

#[test]
fn a_value_that_does_not_arrive_is_an_error_that_says_why() {
    let spoiled = |spoil: fn(&mut Piece)| {
        let mut w = World::new();
        let conn = w.relay();
        let job = w.submit(command(), 1);
        let value = bytes(8, 2 * PIECE_BYTES);
        report_named(&mut w, conn, outcome(job, 0, OutcomeKind::Value), &name(&value).to_bytes());
        for Want { job, hash, offset } in wants(&w, conn) {
            let start = offset as usize;
            let bytes = Bytes::copy_from_slice(&value[start..start + PIECE_BYTES]);
            let mut piece = Piece { job, hash, offset, bytes, fault: String::new() };
            spoil(&mut piece);
            w.say(conn, piece);
        }
        let view = w.task(job, 0);
        (view.row.state, view.row.message.unwrap_or_default(), w.got(conn).confirmed())
    };
    let (state, message, confirmed) = spoiled(|p| p.fault = "no such file".into());
    assert_eq!((state.as_str(), confirmed), ("other", Some(1)));
    assert!(message.ends_with("did not arrive: no such file"), "{message}");
    let (state, message, _) = spoiled(|p| p.bytes = Bytes::from_static(b"cut"));
    assert!(state == "other" && message.contains("a piece of 3 bytes"), "{message}");
    let (state, message, _) = spoiled(|p| p.bytes = vec![0; PIECE_BYTES].into());
    assert!(state == "other" && message.contains("its hash is"), "{message}");
    // What was not wanted is not taken, and the task goes on waiting.
    let (state, _, confirmed) = spoiled(|p| p.offset += PIECE_BYTES as u64);
    assert_eq!((state.as_str(), confirmed), ("assigned", None));
}

#[test]
fn a_name_that_is_none_ends_the_task_with_an_error() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 1);
    report_named(&mut w, conn, outcome(job, 0, OutcomeKind::Value), b"nonsense");
    let view = w.task(job, 0);
    assert_eq!(view.row.state, "other");
    assert_eq!(w.got(conn).confirmed(), Some(1));
}

#[test]
fn a_disk_that_is_full_is_waited_for() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 1);
    let value = bytes(9, 2 * PIECE_BYTES);
    report_named(&mut w, conn, outcome(job, 0, OutcomeKind::Value), &name(&value).to_bytes());
    w.disk.full = true;
    let given = answer(&mut w, conn, &value, 0);
    assert_eq!((given, w.counts(job).ok), (2, 0));
    w.disk.full = false;
    w.now += 1_000_000;
    w.feed(Input::Timer);
    answer(&mut w, conn, &value, given);
    assert_eq!(w.counts(job).ok, 1);
}

#[test]
fn a_retried_job_names_the_payloads_of_the_first_and_keeps_them() {
    let mut w = World::new();
    let conn = w.relay();
    let job = open_job(&mut w);
    let (good, bad) = (bytes(10, PIECE_BYTES + 1), bytes(11, PIECE_BYTES + 2));
    put(&mut w, job, &good).unwrap();
    put(&mut w, job, &bad).unwrap();
    w.ask(Request::Append { job, first: 0, tasks: named(&[&good, &bad]) }).unwrap();
    w.ask(Request::Close { job }).unwrap();
    w.report(conn, vec![outcome(job, 0, OutcomeKind::Value), outcome(job, 1, OutcomeKind::Exit)]);
    let Ok(Reply::Submitted(again)) = w.ask(Request::Retry { job, key: JobKey([7; 16]) }) else {
        panic!("a job with a failed task can be retried")
    };
    assert!(lies_at_the_broker(&mut w, again.job, &bad));
    assert!(!lies_at_the_broker(&mut w, again.job, &good), "only what is tried again is named");
    assert!(w.disk.kept.iter().all(|(job, _)| *job == again.job) && w.disk.kept.len() == 2);
    w.ask(Request::Forget { job }).unwrap();
    w.restart();
    assert!(lies_at_the_broker(&mut w, again.job, &bad));
    let segments: Vec<u32> = w.disk.kept.iter().map(|(_, blob)| blob.segment).collect();
    let live = w.broker.live_payloads();
    assert!(segments.iter().all(|segment| live.contains(&(again.job, *segment))));
}

#[test]
fn a_relay_of_the_version_before_is_not_given_what_it_would_not_understand() {
    let mut w = World::new();
    let job = open_job(&mut w);
    let item = bytes(12, PIECE_BYTES + 1);
    put(&mut w, job, &item).unwrap();
    w.ask(Request::Append { job, first: 0, tasks: named(&[&item]) }).unwrap();
    w.version_max = 1;
    let conn = w.relay();
    assert_eq!(w.got(conn).assigned_count(), 0);
    let small = w.submit(command(), 1);
    assert_eq!(w.got(conn).assigned()[0].job, small, "other jobs do not wait behind it");
    let ticket = w.ask_later(ME, Request::Explain { job });
    let ask = w.got(conn).last(|m| if let Message::Ask(ask) = m { Some(ask.id) } else { None }).unwrap();
    w.say(conn, Answer { id: ask, what: AnswerWhat::Text(Vec::new()) });
    let Some(Ok(Reply::Lines(lines))) = w.replies.remove(&ticket) else { panic!("no explanation") };
    assert!(lines.iter().any(|line| line.contains("older version")), "{lines:?}");
    w.feed(Input::ConnClosed { conn });
    w.version_max = VERSION_MAX;
    let conn = w.relay();
    assert_eq!(w.got(conn).assigned()[0].job, job);
}
