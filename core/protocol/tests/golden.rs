//! One of each message, pinned byte for byte: a change of the wire format is seen in review and raises a version.

use bytes::Bytes;
use pf_protocol::frame::Frame;
use pf_protocol::ids::*;
use pf_protocol::job::*;
use pf_protocol::message::*;
use pf_protocol::outcome::*;
use pf_protocol::ranges::Ranges;
use pf_protocol::report::*;
use std::fmt::Write;

fn job_def() -> JobDef {
    let function =
        Function { kind: FunctionKind::Source, bytes: b"def f(): pass".to_vec(), name: "f".into() };
    JobDef {
        job: JobId(7),
        key: JobKey([1; 16]),
        owner: OwnerId(1),
        spec: JobSpec {
            name: Some("sweep".into()),
            body: Body::Python(Python {
                function: function.id(),
                python: None,
                client_python: Some("3.11".into()),
                chunked: true,
            }),
            ..JobSpec::default()
        },
        function: Some(function),
    }
}

fn outcome_batch() -> OutcomeBatch {
    let attempt = AttemptId { epoch: Epoch(2), n: 9 };
    let failed = Outcome {
        job: JobId(7),
        index: 1,
        attempt,
        kind: OutcomeKind::Exit,
        error: Some(Box::new(ErrorDetail {
            message: "exit code 3".into(),
            exit: Some(3),
            ..Default::default()
        })),
        usage: Some(Usage { user_us: 1, system_us: 2, max_rss_kib: 3 }),
        ..Default::default()
    };
    let good = Outcome {
        job: JobId(7),
        index: 0,
        attempt,
        held_us: 5,
        ran_us: 70_000,
        value_len: 2,
        ..Default::default()
    };
    OutcomeBatch {
        manager: ManagerId { block: BlockId(3), node: 0, incarnation: 99 },
        node: "n1".into(),
        seq: 4,
        outcomes: vec![good, failed],
        blob: Bytes::from_static(b"ok"),
    }
}

fn messages() -> Vec<Message> {
    let task = TaskId { job: JobId(7), index: 1 };
    let attempt = AttemptId { epoch: Epoch(2), n: 9 };
    let manager = ManagerId { block: BlockId(3), node: 0, incarnation: 99 };
    let tasks = Ranges::from_range(0, 1000);
    let hello = |who| Hello {
        who,
        incarnation: 42,
        version_min: 1,
        version_max: 1,
        epoch_seen: Epoch(2),
        host: "n1".into(),
        pid: 100,
        clock_ms: 1_700_000_000_000,
    };
    let report = EndpointReport {
        host: "login1".into(),
        blocks: vec![BlockReport {
            block: BlockId(3),
            state: BlockState::Ended(BlockEnd::Failed(1)),
            ..Default::default()
        }],
        ..Default::default()
    };
    vec![
        hello(Who::Relay { endpoint: "local".into(), takeover: false }).into(),
        hello(Who::Manager {
            manager,
            node: "n1".into(),
            capacity: Default::default(),
            walltime_left_ms: 60_000,
        })
        .into(),
        hello(Who::Pilot {
            block: BlockId(3),
            incarnation: 42,
            scheduler_id: Some("1234".into()),
            restarts: 1,
            nodes: vec!["n1".into()],
            walltime_left_ms: 60_000,
        })
        .into(),
        Welcome {
            session: 11,
            version: 1,
            epoch: Epoch(2),
            endpoint: EndpointId(1),
            heartbeat_ms: 1000,
            silent_ms: 10_000,
            lease_ms: 60_000,
            redial_ms_max: 2_000,
        }
        .into(),
        Refuse { code: "claimed".into(), message: "block b3 has a pilot".into(), retry: false }.into(),
        Heartbeat {}.into(),
        Bye { reason: "drained".into(), done: true }.into(),
        Define { jobs: vec![job_def()] }.into(),
        Assign {
            batches: vec![TaskBatch {
                job: JobId(7),
                tasks: Ranges::from_range(0, 2),
                lost: 0,
                lens: vec![1, 2],
                blob: Bytes::from_static(b"abb"),
            }],
        }
        .into(),
        Credit { tasks_upto: 1000, bytes_upto: 1 << 20 }.into(),
        Outcomes { number: 1, batches: vec![outcome_batch()] }.into(),
        Confirm { upto: 1 }.into(),
        Cancel { job: JobId(7), tasks: tasks.clone(), kill: true }.into(),
        Release { jobs: vec![JobId(7)] }.into(),
        Unfinished {
            jobs: vec![UnfinishedJob {
                job: JobId(7),
                tasks: tasks.clone(),
                cancel: Ranges::new(),
                kill: false,
            }],
            last: true,
        }
        .into(),
        Holding { jobs: vec![(JobId(7), tasks.clone())], last: true, rest: Rest::NotStarted }.into(),
        Return { jobs: vec![(JobId(7), tasks.clone())] }.into(),
        Started { manager, node: "n1".into(), tasks: vec![StartedTask { task, attempt, ran_us: 60_000 }] }
            .into(),
        Report { report }.into(),
        Ask { id: 1, what: AskWhat::ReadLog { task, from: 0 } }.into(),
        Answer {
            id: 1,
            what: AnswerWhat::Log { pieces: vec![(1, Bytes::from_static(b"hi"))], next: 9, end: true },
        }
        .into(),
        Dispatch {
            epoch: Epoch(2),
            batches: vec![AttemptBatch {
                job: JobId(7),
                first: attempt,
                tasks,
                lens: vec![],
                blob: Bytes::new(),
            }],
        }
        .into(),
        Recall { id: 1, epoch: Epoch(2), attempts: None }.into(),
        Recalled { id: 1, attempts: vec![attempt] }.into(),
        Refused { attempts: vec![attempt], reason: "no such feature".into() }.into(),
        CancelAttempts { epoch: Epoch(2), attempts: vec![attempt], kill: true }.into(),
        Inventory { held: vec![(task, attempt)], running: vec![], ended: vec![], last: true }.into(),
        Verdict { drop: vec![attempt] }.into(),
        Drain { epoch: Epoch(2), reason: "idle".into(), grace_ms: 0 }.into(),
        Load { load: ManagerReport { manager: "b3/0".into(), running: 1, ..Default::default() } }.into(),
        PilotReport { walltime_left_ms: 1, ended: vec![(0, "exit 1".into())] }.into(),
        Want { job: JobId(7), hash: ContentHash([6; 32]), offset: 262_144 }.into(),
        Piece {
            job: JobId(7),
            hash: ContentHash([6; 32]),
            offset: 262_144,
            bytes: Bytes::from_static(b"rest"),
            fault: String::new(),
        }
        .into(),
    ]
}

#[test]
fn every_message_is_pinned() {
    let mut text = String::new();
    let mut kinds = std::collections::BTreeSet::new();
    for message in messages() {
        kinds.insert(message.kind());
        let frame = Frame { session: 11, seq: 5, message };
        let bytes = frame.encode().unwrap();
        assert_eq!(Frame::decode(&bytes).unwrap(), frame);
        write!(text, "{} {}\n ", frame.message.kind(), frame.message.name()).unwrap();
        for (i, byte) in bytes.iter().enumerate() {
            if i > 0 && i % 48 == 0 {
                text.push_str("\n ");
            }
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    assert_eq!(kinds.len(), 31, "a message is missing from this test");
    insta::assert_snapshot!(text);
}

#[test]
fn a_million_array_tasks_are_a_few_bytes() {
    let batch = TaskBatch { job: JobId(7), tasks: Ranges::from_range(0, 1_000_000), ..Default::default() };
    let message = Assign { batches: vec![batch] }.into();
    assert!(Frame { session: 1, seq: 1, message }.encode().unwrap().len() < 64);
}

#[test]
fn values_are_cut_out_of_the_blob_or_the_batch_is_malformed() {
    let mut batch = outcome_batch();
    assert_eq!(batch.with_values().unwrap()[0].1, Bytes::from_static(b"ok"));
    batch.outcomes[1].value_len = 1;
    assert!(batch.with_values().is_none());
    batch.outcomes[1].value_len = u32::MAX;
    assert!(batch.with_values().is_none());
}
