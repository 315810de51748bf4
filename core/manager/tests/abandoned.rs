//! A manager whose relay never comes (back) gives its node up by itself.

use pf_link::Timing;
use pf_manager_core::{Effect, Input, ManagerConfig, ManagerCore, NodeShape};
use pf_protocol::{BlockId, Epoch, ManagerId};

const SECOND: u64 = 1_000_000;

#[test]
fn a_manager_that_hears_no_relay_for_ten_minutes_ends() {
    let config = ManagerConfig {
        manager: ManagerId { block: BlockId(1), node: 0, incarnation: 7 },
        node: "n1".into(),
        pid: 1,
        clock_ms: 0,
        shape: NodeShape::unpinned(2),
        walltime_end: 24 * 3_600 * SECOND,
        epoch_seen: Epoch(1),
        timing: Timing::default(),
    };
    let mut core = ManagerCore::new(config, 0);
    let mut now = 0;
    let mut inputs = vec![Input::Start];
    let mut timer = None;
    loop {
        for input in std::mem::take(&mut inputs) {
            let mut effects = Vec::new();
            core.handle(now, input, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Dial => inputs.push(Input::Dialled { conns: vec![] }),
                    Effect::SetTimer { at } => timer = at,
                    Effect::Spool { upto, .. } => inputs.push(Input::Spooled { upto, ok: true }),
                    Effect::Exit { reason } => {
                        assert!(reason.contains("no relay"), "{reason}");
                        assert!((600..660).contains(&(now / SECOND)), "it ended after {} s", now / SECOND);
                        return;
                    }
                    other => panic!("unexpected: {other:?}"),
                }
            }
        }
        if inputs.is_empty() {
            now = timer.take().expect("it waits for something").max(now + 1);
            assert!(now < 3_600 * SECOND, "it holds its node for ever");
            inputs.push(Input::Timer);
        }
    }
}
