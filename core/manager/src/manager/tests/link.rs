//! What a broken link, a moved relay and an over lease mean for what runs.

use super::rig::{Rig, SECOND, command, exit, killed};
use crate::limits::GATHER_US;
use pf_protocol::message::{Message, Recall, Verdict};
use pf_protocol::outcome::{OutcomeKind, Ran};
use pf_protocol::{AttemptId, Epoch};
use std::collections::BTreeMap;

#[test]
fn outcomes_gather_while_tasks_wait_for_a_slot() {
    let mut rig = Rig::new(1);
    rig.define(1, command());
    let ids = rig.dispatch(1, 4);
    for id in &ids[..2] {
        rig.start_all();
        rig.end(*id, exit(0));
        rig.turn_end();
    }
    assert_eq!(rig.outcomes().len(), 0, "others wait behind them");
    rig.wait_until(rig.now + GATHER_US);
    assert_eq!(rig.outcomes().len(), 2, "not for long");
    rig.start_all();
    rig.end(ids[2], exit(0));
    rig.turn_end();
    assert_eq!(rig.outcomes().len(), 3, "the last one runs, and nothing waits: at once");
}

#[test]
fn a_break_sends_inventory_and_unconfirmed_outcomes_again() {
    let mut rig = Rig::new(1);
    rig.define(1, command());
    let ids = rig.dispatch(1, 3);
    rig.start_all();
    rig.end(ids[0], exit(0));
    rig.turn_end();
    rig.wait_until(rig.now + GATHER_US);
    rig.start_all();
    rig.cut();
    rig.reachable = true;
    rig.lowest_epoch = 2;
    rig.wait_until(rig.now + 30 * SECOND);
    let inventory = rig.last_inventory();
    assert_eq!(inventory.ended.iter().map(|e| e.1).collect::<Vec<_>>(), [ids[0]]);
    assert_eq!(inventory.running.iter().map(|e| e.1).collect::<Vec<_>>(), [ids[1]]);
    assert_eq!(inventory.held.iter().map(|e| e.1).collect::<Vec<_>>(), [ids[2]]);
    assert_eq!(rig.outcomes().len(), 2, "the same outcome, twice");
    // The new relay knows better about two of them, and an older one has nothing to say.
    rig.say(Verdict { drop: vec![ids[0], ids[2]] });
    assert!(rig.core.all_confirmed());
    assert_eq!(rig.core.counts(), (0, 1));
    rig.say(Recall { id: 1, epoch: Epoch(1), attempts: None });
    assert!(!rig.messages.iter().any(|m| matches!(m, Message::Recalled(_))));
}

#[test]
fn a_relay_of_a_lower_epoch_is_not_listened_to() {
    let mut rig = Rig::new(1);
    rig.lowest_epoch = 5;
    rig.cut();
    rig.reachable = true;
    rig.wait_until(rig.now + 30 * SECOND);
    rig.define(1, command());
    rig.dispatch(1, 1);
    assert_eq!(rig.core.counts(), (0, 1));
    rig.lowest_epoch = 4;
    rig.cut();
    rig.reachable = true;
    rig.messages.clear();
    rig.wait_until(rig.now + 30 * SECOND);
    assert!(!rig.messages.iter().any(|m| matches!(m, Message::Inventory(_))));
}

#[test]
fn cut_off_for_the_lease_it_starts_nothing_and_for_twice_the_lease_it_kills() {
    let mut rig = Rig::new(1);
    rig.define(1, command());
    let ids = rig.dispatch(1, 3);
    rig.start_all();
    rig.cut();
    let cut = rig.now;
    rig.wait_until(cut + 61 * SECOND);
    rig.end(ids[0], exit(0));
    assert!(rig.starting.is_empty(), "the lease is over");
    assert_eq!(rig.spooled, 0);
    rig.wait_until(cut + 100 * SECOND);
    assert_eq!(rig.spooled, 1);
    rig.wait_until(cut + 121 * SECOND);
    assert_eq!(rig.core.counts(), (0, 0));
    rig.reachable = true;
    rig.wait_until(cut + 160 * SECOND);
    let kinds: BTreeMap<AttemptId, (OutcomeKind, Ran)> =
        rig.outcomes().iter().map(|o| (o.attempt, (o.kind, o.ran))).collect();
    assert_eq!(kinds[&ids[0]], (OutcomeKind::Value, Ran::Yes));
    assert_eq!(kinds[&ids[1]], (OutcomeKind::Lost, Ran::No));
    rig.dispatch(1, 1);
    assert!(
        rig.messages.iter().any(|m| matches!(m, Message::Refused(_))),
        "a new session defines its jobs again"
    );
}

#[test]
fn cut_off_for_twice_the_lease_kills_what_runs() {
    let mut rig = Rig::new(1);
    rig.define(1, command());
    let id = rig.dispatch(1, 1)[0];
    rig.start_all();
    rig.cut();
    rig.wait_until(rig.now + 121 * SECOND);
    assert_eq!(rig.signals, [(id, 9)]);
    rig.end(id, killed(9));
    rig.turn_end();
    assert!(!rig.core.all_confirmed());
}
