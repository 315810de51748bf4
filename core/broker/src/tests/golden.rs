//! The bytes of each record, pinned: a change here is a change of the log's format, and raises a version.

use crate::ended::Row;
use crate::record::*;
use pf_protocol::job::{Body, Command, FunctionKind, JobSpec};
use pf_protocol::outcome::{OutcomeKind, Ran};
use pf_protocol::*;

fn all() -> Vec<Record> {
    let at_us = 1_700_000_000_000_001;
    let job = JobId(12);
    let blob = BlobRef { segment: 3, offset: 4_096, len: 77 };
    let pieces = vec![Piece { first: 0, count: 2, blob }];
    let argv = vec!["echo".into(), "{item}".into()];
    let spec = JobSpec { body: Body::Command(Command { argv, ..Command::default() }), ..JobSpec::default() };
    let attempt = AttemptId { epoch: Epoch(2), n: 9 };
    let endpoint = EndpointId(1);
    let row = Row { index: 1, held_us: 5, ran_us: 6, value_len: 70, kind: OutcomeKind::Exit, ran: Ran::Yes };
    let failures = vec![Failure { nth: 0, line: "exit 3".into(), exit: Some(3), signal: None }];
    vec![
        JobSubmitted {
            at_us,
            job,
            key: JobKey([1; 16]),
            hash: ContentHash([2; 32]),
            owner: OwnerId(1),
            endpoint,
            spec,
            count: 2,
            open: true,
            pieces: pieces.clone(),
        }
        .into(),
        TasksAppended { at_us, job, first: 2, count: 2, pieces }.into(),
        JobClosed { at_us, job }.into(),
        TasksEnded {
            at_us,
            parts: vec![EndedPart {
                job,
                node: "n1".into(),
                rows: vec![row],
                blob,
                values_len: 70,
                failures,
                queued_us: 1,
                transferred_us: 2,
                timed: 1,
            }],
        }
        .into(),
        AttemptsFailed {
            at_us,
            attempts: vec![FailedAttempt {
                job,
                index: 3,
                attempt,
                node: "n1".into(),
                kind: OutcomeKind::NodeLost,
                count: CountAs::Loss,
                line: "no heartbeat".into(),
            }],
        }
        .into(),
        Cancelled {
            at_us,
            job,
            ended: Ranges::from_range(4, 2),
            may_run: Ranges::from_range(5, 1),
            asked: Ranges::from_range(0, 1),
            whole: false,
            kill: true,
            reason: "cancelled".into(),
        }
        .into(),
        JobForgotten { at_us, job, expired: true }.into(),
        FunctionPut {
            at_us,
            owner: OwnerId(1),
            function: FunctionId([4; 32]),
            kind: FunctionKind::Source,
            name: "f".into(),
            bytes: vec![1, 2],
        }
        .into(),
        EndpointPut {
            at_us,
            endpoint,
            name: "local".into(),
            owner: OwnerId(1),
            relay_key: Some(ContentHash([5; 32])),
        }
        .into(),
        EndpointRemoved { at_us, endpoint }.into(),
        EpochGranted { at_us, endpoint, epoch: Epoch(2), incarnation: 7, host: "login1".into(), pid: 99 }
            .into(),
        RelayEnded { at_us, endpoint, epoch: Epoch(2) }.into(),
        TokenAdded { at_us, owner: OwnerId(1), name: "laptop".into(), hash: ContentHash([6; 32]) }.into(),
        TokenRevoked { at_us, owner: OwnerId(1), name: "laptop".into() }.into(),
        TasksHanded { at_us, job: JobId(7), tasks: Ranges::from_range(2, 5) }.into(),
        PayloadPut {
            at_us,
            job,
            hash: ContentHash([8; 32]),
            len: 300_000,
            blobs: vec![BlobRef { segment: 3, offset: 80, len: 262_144 }],
        }
        .into(),
    ]
}

#[test]
fn the_bytes_of_each_record() {
    let mut lines = String::new();
    for record in all() {
        let bytes = record.encode().unwrap();
        let text: String =
            bytes.iter().flat_map(|b| std::ascii::escape_default(*b)).map(char::from).collect();
        lines.push_str(&format!("{} {} v{VERSION} {text}\n", record.kind(), record.name()));
    }
    insta::assert_snapshot!(lines);
}

#[test]
fn each_record_reads_what_it_writes() {
    for record in all() {
        let bytes = record.encode().unwrap();
        let read = Record::decode(record.kind(), VERSION, true, &bytes).unwrap();
        assert_eq!(read, Some(record));
    }
}
