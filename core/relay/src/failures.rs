//! Blocks that die young: what counts, how long to wait, when to give up, and what of it survives a restart of the relay (all of it:
//! times are those of the wall clock, in the roster).

use crate::block_life::end_words;
use crate::limits::{BACKOFF_MS_MAX, LATER_US, SETTLED_US};
use crate::plan::ShapeBook;
use crate::relay::Relay;
use pf_protocol::BlockId;
use pf_protocol::report::BlockEnd;

impl Relay {
    fn book_of(&mut self, id: BlockId) -> Option<&mut ShapeBook> {
        let shape = self.blocks.all.get(&id)?.record.shape.clone();
        Some(self.blocks.roster.shapes.entry(shape).or_default())
    }

    /// The block has shown that its set-up works.
    pub(crate) fn block_works(&mut self, id: BlockId) {
        let Some(block) = self.blocks.all.get_mut(&id).filter(|b| !b.record.came_up) else { return };
        block.record.came_up = true;
        if let Some(book) = self.book_of(id) {
            (book.failures, book.proven) = (0, true);
        }
        self.roster_changed();
    }

    /// Blocks whose managers have stayed for a while work, even if no task has ended in them.
    pub(crate) fn see_what_stays(&mut self) {
        let now = self.now;
        let stays = self.blocks.live().filter(|b| {
            !b.record.came_up && b.pilot_conn.is_some() && b.heard_at.is_some_and(|at| now >= at + SETTLED_US)
        });
        for id in stays.map(|b| b.record.block).collect::<Vec<_>>() {
            self.block_works(id);
        }
    }

    /// The end of a block, judged: whether the set-up is to blame.
    pub(crate) fn judge_end(&mut self, id: BlockId, end: &BlockEnd, by_us: bool) {
        let Some(block) = self.blocks.all.get(&id) else { return };
        let heard = block.heard_at.is_some();
        if by_us || block.record.came_up || *end == BlockEnd::Preempted {
            return;
        }
        match end {
            BlockEnd::Walltime | BlockEnd::NodeFailed if heard => {}
            // Somebody else did it. It would be rude to be back at once.
            BlockEnd::Cancelled => {
                self.wait_with(id, LATER_US / 1_000, format!("{id} was cancelled by somebody else"))
            }
            _ => self.count_failure(id, end, heard),
        }
    }

    /// The scheduler says that the block will never run: that is a failure, and it is taken out of the queue.
    pub(crate) fn never_runs(&mut self, id: BlockId, words: &str) {
        if self.blocks.all.get(&id).is_some_and(|b| !b.cancel_asked) {
            if !self.leave_out_no_more(id, words) {
                self.count_failure(id, &BlockEnd::SubmitFailed(format!("it will never run: {words}")), false);
            }
            self.cancel_block(id, "it would never run");
        }
    }

    fn count_failure(&mut self, id: BlockId, end: &BlockEnd, heard: bool) {
        let (most, first_ms) = (self.config.scaling.failures_max.max(1), self.config.scaling.backoff_ms);
        let Some(book) = self.book_of(id) else { return };
        book.failures += 1;
        let failures = book.failures;
        book.last_failed = Some(id);
        let when = if heard { "before its managers had done anything" } else { "before a manager connected" };
        let row = if failures == 1 { "1 block".into() } else { format!("{failures} blocks in a row") };
        let why = format!("{row} died young; the last was {id}, which ended {when}: {}", end_words(end));
        if failures >= most {
            book.stopped = Some(why.clone());
            self.decide(format!("ask for no more blocks of this shape: {why}"));
            self.pause_if_all_stopped();
        } else {
            let pause_ms = first_ms.saturating_mul(1 << (failures - 1).min(30)).min(BACKOFF_MS_MAX);
            self.decide(format!("wait {} s: {why}", pause_ms.div_ceil(1_000)));
            self.wait_with(id, pause_ms, why);
        }
        self.roster_changed();
    }

    /// No block of this one's shape is asked for before so much time is over.
    pub(crate) fn wait_with(&mut self, id: BlockId, pause_ms: u64, why: String) {
        let until = self.unix_ms() + pause_ms;
        let Some(book) = self.book_of(id) else { return };
        if until >= book.not_before_ms {
            (book.not_before_ms, book.not_before_why) = (until, why);
        }
        self.roster_changed();
    }

    fn pause_if_all_stopped(&mut self) {
        let books = &self.blocks.roster.shapes;
        let stopped =
            self.config.scaling.shapes.iter().map(|s| Some((&s.name, books.get(&s.name)?.stopped.as_ref()?)));
        let stopped: Option<Vec<(&String, &String)>> = stopped.collect();
        let Some(stopped) = stopped else { return };
        let one = stopped.len() == 1;
        let words =
            stopped.iter().map(|(shape, why)| if one { (*why).clone() } else { format!("{shape}: {why}") });
        let reason = words.collect::<Vec<_>>().join("; ");
        self.pause(reason);
    }

    /// The last words of a block that died young go with the reason.
    pub(crate) fn hear_last_words(&mut self, id: BlockId, tail: &str) {
        let Some(last) = tail.trim().lines().last().map(str::to_owned) else { return };
        let young = self.blocks.all.get(&id).is_some_and(|b| b.is_over() && !b.record.came_up);
        let Some(book) = self.book_of(id).filter(|b| young && b.last_failed == Some(id)) else { return };
        book.last_failed = None;
        let add = |words: &mut String| words.push_str(&format!("; its log ends with: {last}"));
        let paused = book.stopped.as_mut().map(|stopped| {
            let before = stopped.clone();
            add(stopped);
            (before, stopped.clone())
        });
        add(&mut book.not_before_why);
        let endpoint = self.blocks.roster.paused.as_mut();
        if let (Some(endpoint), Some((before, after))) = (endpoint, paused) {
            *endpoint = endpoint.replace(&before, &after);
        }
        self.decide(format!("the log of {id} ends with: {last}"));
        self.roster_changed();
    }

    pub(crate) fn pause(&mut self, reason: String) {
        self.decide(format!("pause: {reason}"));
        self.blocks.roster.paused = Some(reason);
        self.roster_changed();
    }

    /// Whatever held blocks back is forgotten: somebody says that it is mended.
    pub(crate) fn resume(&mut self) {
        self.decide("resume: asked by its owner".into());
        self.blocks.roster.paused = None;
        for book in self.blocks.roster.shapes.values_mut() {
            (book.failures, book.stopped, book.not_before_ms) = (0, None, 0);
        }
        for node in self.blocks.roster.quarantine.keys().cloned().collect::<Vec<_>>() {
            self.release_node(&node);
        }
        self.blocks.not_before = self.now;
        self.roster_changed();
    }

    /// After a restart nobody waits longer than the longest back-off: the clock may have been wrong.
    pub(crate) fn bound_waits(&mut self) {
        let latest = self.unix_ms() + BACKOFF_MS_MAX;
        for book in self.blocks.roster.shapes.values_mut() {
            book.not_before_ms = book.not_before_ms.min(latest);
        }
    }
}
