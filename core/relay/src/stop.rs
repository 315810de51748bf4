//! The ordered end: what has not started goes back, blocks are drained, and the relay leaves when all is over and confirmed.

use crate::io::Effect;
use crate::limits::STOP_CONFIRM_US;
use crate::relay::Relay;
use pf_protocol::{BlockId, Micros};

/// An end that is under way.
#[derive(Debug)]
pub(crate) struct Stopping {
    /// Whether running tasks are not waited for.
    pub kill: bool,
    /// Since when all blocks are over.
    idle_since: Option<Micros>,
}

/// How long running tasks may go on when the stop waits for them: as long as they like. Milliseconds.
const NO_HURRY_MS: u64 = u64::MAX / 4_000;

impl Relay {
    pub(crate) fn begin_stop(&mut self, kill: bool) {
        if let Some(stopping) = &mut self.stopping {
            stopping.kill |= kill;
        } else {
            self.stopping = Some(Stopping { kill, idle_since: None });
        }
        self.return_waiting();
        let handles: Vec<u32> = self.managers.keys().copied().collect();
        for handle in handles {
            self.recall(handle, None);
        }
        let blocks: Vec<BlockId> = self.blocks.live().map(|b| b.record.block).collect();
        for id in blocks {
            let busy = self.managers.values().any(|m| m.id.block == id && m.placed > 0);
            if kill || !busy {
                self.drain_block(id, "the relay stops", 0);
            } else {
                self.drain_block(id, "the relay stops when its tasks have ended", NO_HURRY_MS);
            }
        }
        self.scale_at = self.now;
        self.go_on_stopping();
    }

    pub(crate) fn go_on_stopping(&mut self) {
        let now = self.now;
        let any_live = self.blocks.live().next().is_some();
        let Some(stopping) = self.stopping.as_mut().filter(|_| !self.exited) else { return };
        if any_live {
            return;
        }
        let since = *stopping.idle_since.get_or_insert(now);
        let spools_missing = self.blocks.all.values().any(|b| !b.spools_read);
        if (spools_missing || !self.outbox.is_empty()) && now < since + STOP_CONFIRM_US {
            return;
        }
        self.exited = true;
        self.broker.bye(self.now, "the relay was stopped", true, &mut self.outs);
        self.effects.push(Effect::Exit { reason: "stopped".into(), ok: true });
    }
}
