//! How a manager ends: the walltime, and a drain.

use super::rig::{Rig, SECOND, command, exit, killed};
use crate::Input;
use pf_protocol::Epoch;
use pf_protocol::job::JobSpec;
use pf_protocol::message::{Drain, Message};
use pf_protocol::outcome::OutcomeKind;

#[test]
fn the_walltime_ends_in_order_warn_kill_spool_exit() {
    let mut rig = Rig::with_walltime(1, 20 * SECOND);
    rig.define(1, JobSpec { warn_signal: Some(10), ..command() });
    let ids = rig.dispatch(1, 2);
    rig.start_all();
    rig.wait_until(17 * SECOND);
    assert!(rig.signals.is_empty());
    rig.wait_until(18 * SECOND);
    assert_eq!(rig.signals, [(ids[0], 10)]);
    assert!(rig.messages.iter().any(|m| matches!(m, Message::Recalled(r) if r.attempts == ids[1..])));
    rig.wait_until(19_500_000);
    assert_eq!(rig.signals[1..], [(ids[0], 15), (ids[0], 9)]);
    rig.end(ids[0], killed(9));
    rig.turn_end();
    assert_eq!(rig.outcomes()[0].kind, OutcomeKind::Lost);
    rig.wait_until(20 * SECOND);
    assert_eq!(rig.spooled, 1, "nobody confirmed");
    assert!(rig.exit.is_some());
}

#[test]
fn a_drain_lets_run_what_runs_and_exits_once_all_is_confirmed() {
    let mut rig = Rig::new(1);
    rig.define(1, command());
    let id = rig.dispatch(1, 1)[0];
    rig.start_all();
    rig.say(Drain { epoch: Epoch(1), reason: "idle".into(), grace_ms: 60_000 });
    rig.wait_until(rig.now + 30 * SECOND);
    assert!(rig.signals.is_empty() && rig.exit.is_none());
    rig.end(id, exit(0));
    rig.turn_end();
    assert!(rig.exit.is_none());
    rig.confirm_all();
    assert_eq!(rig.exit.as_deref(), Some("idle"));
    assert_eq!(rig.spooled, 0);
    assert!(rig.messages.iter().any(|m| matches!(m, Message::Outcomes(_))));
}

#[test]
fn a_sigterm_of_the_host_ends_tasks_with_their_manager_and_not_as_failures() {
    let kinds = |rig: &Rig| rig.outcomes().iter().map(|o| o.kind).collect::<Vec<_>>();
    // The task's end is seen before the manager's own signal, or after it. srun passes on SIGUSR1 and SIGUSR2 as well, LSF sends SIGINT.
    for (first, signal) in [(true, 15), (false, 15), (true, 12), (false, 10), (true, 2)] {
        let mut rig = Rig::new(1);
        rig.define(1, command());
        let id = rig.dispatch(1, 1)[0];
        rig.start_all();
        let stop = Input::Stop { reason: "a signal".into(), grace_ms: 5_000 };
        if first {
            rig.end(id, killed(signal));
            rig.turn_end();
            assert!(rig.outcomes().is_empty(), "it is not told of at once");
            rig.give(stop);
        } else {
            rig.give(stop);
            rig.end(id, killed(signal));
        }
        rig.turn_end();
        assert_eq!(kinds(&rig), [OutcomeKind::Lost]);
    }
    // Alone it is the task's own.
    let mut rig = Rig::new(1);
    rig.define(1, command());
    let id = rig.dispatch(1, 1)[0];
    rig.start_all();
    rig.end(id, killed(15));
    rig.wait_until(rig.now + SECOND);
    rig.turn_end();
    assert_eq!(kinds(&rig), [OutcomeKind::Signal]);
}
