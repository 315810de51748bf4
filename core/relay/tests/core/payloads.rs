//! Large items are pulled into files before their tasks are placed, values are read for the broker; peers that do it wrong.

use crate::world::*;
use pf_protocol::job::{JobSpec, content_hash};
use pf_protocol::limits::{PIECE_BYTES, WANTS_MAX};
use pf_protocol::message::*;
use pf_protocol::outcome::{Outcome, OutcomeKind};
use pf_protocol::payload::{LARGE, PayloadRef, REF_BYTES};
use pf_protocol::{ContentHash, JobId, Ranges};
use pf_relay_core::{Effect, Input};

const SECOND: u64 = 1_000_000;

fn item(salt: u8, pieces: usize) -> Vec<u8> {
    vec![salt; pieces * PIECE_BYTES + 1]
}

fn name(item: &[u8]) -> PayloadRef {
    PayloadRef { hash: content_hash(item), len: item.len() as u64 }
}

/// One block with one manager of four cores, and job 1.
fn ready() -> World {
    let mut world = World::new(scaling());
    world.connect_broker();
    world.define(1, JobSpec::default());
    world.assign(1, 100, 1);
    world.pass(SECOND);
    world.start_block(1, 1, 4);
    world.finish_all();
    world
}

/// Tasks from `first` on, each with an item that is only named.
fn assign_named(world: &mut World, first: u32, items: &[&[u8]]) {
    let blob: Vec<u8> = items.iter().flat_map(|item| name(item).to_bytes()).collect();
    let lens = vec![LARGE | REF_BYTES as u32; items.len()];
    let tasks = Ranges::from_range(first, items.len() as u32);
    let batch = TaskBatch { job: JobId(1), tasks, lost: 0, lens, blob: blob.into() };
    world.say(Assign { batches: vec![batch] });
}

/// Answers wants from number `from` on; how many there were.
fn give(world: &mut World, items: &[&[u8]], from: usize) -> usize {
    let mut at = from;
    while let Some(&Want { job, hash, offset }) = world.wants.get(at) {
        let item = items.iter().find(|item| content_hash(item) == hash).expect("what is wanted was named");
        let start = offset as usize;
        let bytes = item[start..(start + PIECE_BYTES).min(item.len())].to_vec().into();
        world.say(Piece { job, hash, offset, bytes, fault: String::new() });
        at += 1;
    }
    at
}

fn outcome_of(world: &World, index: u32) -> Option<&Outcome> {
    world.outcomes.iter().flat_map(|b| &b.outcomes).find(|o| o.index == index)
}

#[test]
fn a_task_is_placed_when_its_item_is_whole_and_the_file_goes_with_it() {
    let mut world = ready();
    let (first, second) = (item(1, 2), item(2, 1));
    assign_named(&mut world, 0, &[&first, &second, &first]);
    assert_eq!((world.held(), world.wants.len()), (0, 5), "equal items are pulled once");
    give(&mut world, &[&first, &second], 0);
    assert_eq!(world.held(), 3);
    assert_eq!(world.files.len(), 2);
    assert!(world.files[&(JobId(1), name(&first).hash)] == first);
    world.finish_all();
    world.pass(SECOND);
    assert!(world.files.is_empty(), "nobody names them any more");
}

#[test]
fn no_more_pieces_are_under_way_than_may_be() {
    let mut world = ready();
    world.slow_files = true;
    let large = item(3, 40);
    assign_named(&mut world, 0, &[&large]);
    assert_eq!(world.wants.len(), WANTS_MAX);
    world.say(Ask { id: 1, what: AskWhat::ExplainJob { job: JobId(1) } });
    let Some(AnswerWhat::Text(lines)) = world.answers.last().map(|a| a.what.clone()) else {
        panic!("no answer")
    };
    assert!(lines.iter().any(|l| l.contains("1 of them wait until their large items")), "{lines:?}");
    give(&mut world, &[&large], 0);
    assert_eq!(world.wants.len(), WANTS_MAX, "a piece counts until it is written");
    world.slow_files = false;
    for (hash, offset) in std::mem::take(&mut world.unwritten) {
        world.input(Input::PayloadWritten { job: JobId(1), hash, offset, result: Ok(()) });
    }
    give(&mut world, &[&large], WANTS_MAX);
    assert_eq!((world.wants.len(), world.held()), (41, 1));
}

#[test]
fn what_has_not_come_is_wanted_again_in_the_next_session() {
    let mut world = ready();
    let large = item(4, 2);
    assign_named(&mut world, 0, &[&large]);
    let Want { job, hash, offset } = world.wants[0];
    world.say(Piece { job, hash, offset, bytes: large[..PIECE_BYTES].to_vec().into(), fault: String::new() });
    let seen = world.wants.len();
    world.unfinished =
        vec![UnfinishedJob { job: JobId(1), tasks: Ranges::from_range(0, 1), ..UnfinishedJob::default() }];
    world.break_broker();
    assert_eq!(world.wants[seen].offset, PIECE_BYTES as u64, "what came is kept");
    give(&mut world, &[&large], seen);
    assert_eq!(world.held(), 1);
}

#[test]
fn an_item_that_does_not_arrive_ends_its_tasks_and_no_others() {
    let spoiled = |spoil: fn(&mut Piece)| {
        let mut world = ready();
        let (bad, good) = (item(5, 1), item(6, 1));
        assign_named(&mut world, 0, &[&bad, &good, &bad]);
        let mut at = 0;
        while let Some(&Want { job, hash, offset }) = world.wants.get(at) {
            let item = if hash == name(&bad).hash { &bad } else { &good };
            let start = offset as usize;
            let bytes = item[start..(start + PIECE_BYTES).min(item.len())].to_vec().into();
            let mut piece = Piece { job, hash, offset, bytes, fault: String::new() };
            if item == &bad {
                spoil(&mut piece);
            }
            world.say(piece);
            at += 1;
        }
        assert_eq!(world.held(), 1, "the other one is placed");
        let ended = [0, 2].map(|index| outcome_of(&world, index).map(|o| (o.kind, o.ran)));
        assert_eq!(ended[0], ended[1]);
        assert_eq!(ended[0].expect("it ended").0, OutcomeKind::Other);
        outcome_of(&world, 0).and_then(|o| o.error.clone()).expect("an error").message
    };
    assert!(spoiled(|p| p.fault = "the disk is gone".into()).ends_with("the disk is gone"));
    assert!(spoiled(|p| p.bytes = vec![1, 2].into()).contains("a piece of 2 bytes came"));
    assert!(spoiled(|p| p.bytes = vec![0; p.bytes.len()].into()).contains("its hash is"));
}

#[test]
fn a_piece_that_was_not_wanted_is_not_taken() {
    let mut world = ready();
    let large = item(7, 1);
    assign_named(&mut world, 0, &[&large]);
    let hash = name(&large).hash;
    for (hash, offset) in [(ContentHash([1; 32]), 0), (hash, PIECE_BYTES as u64), (hash, 7), (hash, 1 << 60)]
    {
        let bytes = vec![9; PIECE_BYTES].into();
        world.say(Piece { job: JobId(1), hash, offset, bytes, fault: String::new() });
    }
    assert!(world.files.is_empty() && outcome_of(&world, 0).is_none());
    give(&mut world, &[&large], 0);
    assert_eq!(world.held(), 1);
}

#[test]
fn a_cancelled_task_does_not_wait_for_its_item() {
    let mut world = ready();
    let large = item(8, 1);
    assign_named(&mut world, 0, &[&large]);
    world.say(Cancel { job: JobId(1), tasks: Ranges::from_range(0, 1), kill: false });
    assert_eq!(outcome_of(&world, 0).map(|o| o.kind), Some(OutcomeKind::Cancelled));
    world.pass(SECOND);
    give(&mut world, &[&large], 0);
    assert!(world.files.is_empty() && world.held() == 0);
}

#[test]
fn an_older_manager_is_not_given_what_it_would_not_understand() {
    let mut world = World::new(scaling());
    world.version_max = 1;
    world.connect_broker();
    world.define(1, JobSpec::default());
    world.assign(1, 100, 1);
    world.pass(SECOND);
    world.start_block(1, 1, 4);
    let large = item(9, 1);
    assign_named(&mut world, 0, &[&large]);
    give(&mut world, &[&large], 0);
    assert_eq!(world.held(), 1, "the small one");
    world.version_max = VERSION_MAX;
    world.add_manager(1, 1, 4);
    assert_eq!(world.held(), 2);
}

#[test]
fn values_are_read_for_the_broker_and_go_when_they_are_confirmed() {
    let mut world = ready();
    let value = item(10, 1);
    let (job, hash) = (JobId(1), name(&value).hash);
    world.say(Want { job, hash, offset: 0 });
    world.say(Want { job, hash, offset: PIECE_BYTES as u64 });
    assert_eq!(world.reads, [(hash, 0), (hash, PIECE_BYTES as u64)]);
    let result = Ok(value[..PIECE_BYTES].to_vec().into());
    world.input(Input::PayloadRead { job, hash, offset: 0, result });
    world.input(Input::PayloadRead {
        job,
        hash,
        offset: PIECE_BYTES as u64,
        result: Err("no such file".into()),
    });
    // Twice, and one that nobody wanted: they are not sent.
    world.input(Input::PayloadRead { job, hash, offset: 0, result: Ok(vec![1].into()) });
    let sent: Vec<(usize, &str)> = world.pieces.iter().map(|p| (p.bytes.len(), p.fault.as_str())).collect();
    assert_eq!(sent, [(PIECE_BYTES, ""), (0, "no such file")]);
    world.assign(1, 0, 1);
    world.finish_named(&value);
    let dropped = Effect::PayloadDrop { job, hash, value: true };
    assert!(world.file_effects.contains(&dropped), "{:?}", world.file_effects);
    world.say(Release { jobs: vec![job] });
    assert!(world.file_effects.contains(&Effect::PayloadsDrop { jobs: vec![job] }));
}
