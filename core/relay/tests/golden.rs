//! The relay's own file: what is on disk is pinned, since a relay of another version finds it.

use pf_protocol::report::{BlockEnd, BlockState};
use pf_protocol::resources::NodeCapacity;
use pf_protocol::{BlockId, JobId};
use pf_relay_core::plan::ShapeBook;
use pf_relay_core::{BlockRecord, Quarantine, Roster};

fn block(n: u64, state: BlockState) -> BlockRecord {
    BlockRecord { block: BlockId(n), state, ..BlockRecord::default() }
}

fn roster() -> Roster {
    let book = ShapeBook {
        failures: 3,
        not_before_ms: 1_700_000_060_000,
        stopped: Some("3 blocks in a row ended before a manager came".into()),
        node: Some(NodeCapacity { cores: 64, ..NodeCapacity::default() }),
        start_ms: 900,
        ..ShapeBook::default()
    };
    let whole = BlockRecord {
        block: BlockId(7),
        incarnation: 1,
        name: "pf-far-b7".into(),
        scheduler_id: Some("4711".into()),
        nodes: 4,
        walltime_ms: 3_600_000,
        shape: "large".into(),
        account: Some("proj".into()),
        job: Some(JobId(12)),
        ahead: true,
        exclude: vec!["n3".into()],
        started_ms: Some(1_700_000_000_000),
        idle_node_ms: 5_000,
        used_node_ms: 60_000,
        came_up: true,
        state: BlockState::Running,
    };
    let states = [
        BlockState::Intended,
        BlockState::Queued("Priority".into()),
        BlockState::Held("user hold".into()),
        BlockState::Starting,
        BlockState::Ending,
        BlockState::Unknown("?".into()),
        BlockState::Ended(BlockEnd::Walltime),
    ];
    let quarantine =
        Quarantine { reason: "5 tasks failed".into(), until_ms: 1, needed_by: ["large".to_owned()].into() };
    let blocks = std::iter::once(whole).chain((8..).zip(states).map(|(n, state)| block(n, state)));
    Roster {
        version: 9,
        next_block: 14,
        shapes: [("large".to_owned(), book)].into(),
        paused: Some("by its owner".into()),
        used_node_ms: 120_000,
        idle_node_ms: 10_000,
        jobs_node_ms: [(JobId(12), 60_000)].into(),
        quarantine: [("n3".to_owned(), quarantine)].into(),
        blocks: blocks.collect(),
    }
}

#[test]
fn the_roster_is_pinned_and_read_again() {
    let text = serde_json::to_string_pretty(&roster()).expect("a roster is JSON");
    insta::assert_snapshot!(text);
    assert_eq!(serde_json::from_str::<Roster>(&text).expect("what was written is read"), roster());
}

#[test]
fn fields_of_another_version_are_no_damage() {
    let other =
        r#"{"version": 3, "later": [1], "blocks": [{"block": 5, "name": "pf-far-b5", "colour": "red"}]}"#;
    let read: Roster = serde_json::from_str(other).expect("what is missing has a default");
    assert_eq!((read.version, read.blocks.len()), (3, 1));
    assert_eq!(read.blocks[0].block, BlockId(5));
}
