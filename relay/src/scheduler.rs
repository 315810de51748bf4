//! Carries out what the core wants of the batch scheduler. Submits, questions and cancels each have a thread: one that hangs holds up nobody
//! else. Called by `work`.

use crate::blockdir::{self, Address};
use crate::command::{self, CommandError};
use crate::error::RelayError;
use crate::files::{read, write_script};
use crate::limits::{
    COMMAND_TIME_MAX, END_BYTES_MAX, GONE_AFTER, GONE_LOOKUPS, LOOKUP_PAUSE_MAX, LOOKUPS_A_POLL_MAX,
    SUBMIT_TIME_MAX,
};
use crate::options::RelayOptions;
use crate::program::Program;
use crate::rates::{Rates, unix_ms};
use crate::work::{Desk, chain};
use pf_protocol::BlockId;
use pf_protocol::report::{BlockEnd, BlockState};
use pf_providers::{
    BlockRequest, KnownBlock, Observed, Output, Plan, Provider, ProviderError, script, supervisor,
};
use pf_relay_core::{BlockRecord, Input, Seen, SubmitResult};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What its threads share.
pub(crate) struct Scheduler {
    pub options: Arc<RelayOptions>,
    pub desk: Arc<Desk>,
    pub provider: Box<dyn Provider>,
    pub program: Arc<Program>,
    pub rates: Rates,
    /// When this relay began, Unix milliseconds: an older answer may not know of what an earlier one had begun.
    pub began_ms: u64,
    /// When the submit of a block ended, Unix milliseconds: an older answer cannot list it. None while it is under way.
    pub submitted: Mutex<BTreeMap<BlockId, Option<u64>>>,
}

/// A block that the status did not list when it was asked last.
#[derive(Debug)]
pub(crate) struct Missing {
    since: Instant,
    /// Rounds in which every source said that it does not know the block.
    unknown: u32,
    next: Instant,
    pause: Duration,
}

impl Missing {
    /// Sets the next lookup: later each time, but not past the moment in which the block may be given up.
    fn put_off(&mut self, now: Instant) {
        let next = now + self.pause;
        let due = self.since + GONE_AFTER;
        self.next = if now < due && self.unknown + 1 >= GONE_LOOKUPS { next.min(due) } else { next };
        self.pause = (self.pause * 2).min(LOOKUP_PAUSE_MAX);
    }
}

/// A command without an answer.
enum Failure {
    /// It may have done its work.
    Timeout(String),
    /// It did not.
    NotRun(String),
}

impl Scheduler {
    fn note_submit(&self, block: BlockId, ended: Option<u64>) {
        self.submitted.lock().unwrap_or_else(PoisonError::into_inner).insert(block, ended);
    }

    pub fn submit(&self, record: &BlockRecord, address: &Address) {
        self.note_submit(record.block, None);
        let result = match self.prepare(record, address) {
            Ok(program) => self.run_submit(record, program),
            Err(error) => SubmitResult::Refused(chain(&error)),
        };
        self.note_submit(record.block, Some(unix_ms()));
        self.desk.put(Input::Submitted { block: record.block, result });
    }

    /// Makes what the block needs in the shared folder, and lets it in; the program that it runs.
    fn prepare(&self, record: &BlockRecord, address: &Address) -> Result<String, RelayError> {
        let program = match self.provider.runs_here() {
            true => self.options.program.clone(),
            false => self.program.copy()?,
        };
        let program = program.to_string_lossy().into_owned();
        let key = blockdir::prepare(&self.options, record, address, &program)?;
        self.desk.let_in(record.block, key);
        Ok(program)
    }

    fn run_submit(&self, record: &BlockRecord, program: String) -> SubmitResult {
        let plan = match self.provider.submit(&self.request(record, program)) {
            Ok(plan) => plan,
            Err(error) => return SubmitResult::Refused(error.to_string()),
        };
        if let Err(error) = self.rates.submit_turn() {
            // Without it nobody knows how often is too often.
            return SubmitResult::Later(chain(&error));
        }
        let output = match self.run_plan(&plan, record) {
            Ok(output) => output,
            Err(Failure::Timeout(words)) => return SubmitResult::Unclear(words),
            Err(Failure::NotRun(words)) => return SubmitResult::Refused(words),
        };
        match self.provider.submitted(&output) {
            Ok(id) => SubmitResult::Accepted(id),
            Err(ProviderError::Later(words)) => SubmitResult::Later(words),
            Err(ProviderError::NotUnderstood(words)) => SubmitResult::Unclear(words),
            Err(error) => SubmitResult::Refused(error.to_string()),
        }
    }

    fn request(&self, record: &BlockRecord, program: String) -> BlockRequest {
        let mut asks = self.options.asks.get(&record.shape).cloned().unwrap_or_default();
        if record.account.is_some() {
            asks.account.clone_from(&record.account);
        }
        BlockRequest {
            name: record.name.clone(),
            dir: self.dir(record).to_string_lossy().into_owned(),
            program,
            nodes: record.nodes,
            walltime_ms: record.walltime_ms,
            exclude: if self.provider.can_exclude() { record.exclude.clone() } else { Vec::new() },
            asks,
        }
    }

    fn run_plan(&self, plan: &Plan, record: &BlockRecord) -> Result<Output, Failure> {
        let script = plan.script.as_ref().map(|(name, text)| (self.dir(record).join(name), text));
        if let Some((path, text)) = &script {
            write_script(path, text).map_err(|e| Failure::NotRun(chain(&e)))?;
        }
        let stdin = script.filter(|_| plan.script_on_stdin).map(|(path, _)| path);
        command::run_within(plan, stdin.as_deref(), SUBMIT_TIME_MAX).map_err(|error| match &error {
            CommandError::Timeout { .. } => Failure::Timeout(chain(&error)),
            CommandError::Start { .. } | CommandError::NotThere { .. } => Failure::NotRun(chain(&error)),
        })
    }

    /// Where `blocks` are: as the status lists them, else as they are looked up. What nobody knows for now is left out.
    pub fn query(&self, blocks: &[BlockRecord], missing: &mut BTreeMap<BlockId, Missing>) {
        let seen = self.listed(blocks).map(|listed| {
            let mut seen = self.with_missing(blocks, listed, missing);
            for seen in &mut seen {
                let record = blocks.iter().find(|b| is_of(&seen.scheduler_id, &seen.name, b));
                record.iter().for_each(|record| tell_exactly(&mut seen.state, &self.dir(record)));
            }
            seen
        });
        self.desk.put(Input::Blocks { seen });
    }

    fn listed(&self, blocks: &[BlockRecord]) -> Result<Vec<Observed>, String> {
        let known: Vec<KnownBlock> = blocks.iter().map(|b| self.known(b)).collect();
        let plan = self.provider.status(&known);
        let run = || command::run_within(&plan, None, COMMAND_TIME_MAX).map_err(|e| chain(&e));
        let output = if self.provider.status_is_for_all() {
            let mut submitted = self.submitted.lock().unwrap_or_else(PoisonError::into_inner);
            submitted.retain(|id, _| blocks.iter().any(|b| b.block == *id));
            let since = submitted.values().flatten().copied().fold(self.began_ms, u64::max);
            drop(submitted);
            self.rates.status(since, run)?
        } else {
            run()?
        };
        self.provider.observed(&output).map_err(|e| chain(&e))
    }

    fn with_missing(
        &self,
        blocks: &[BlockRecord],
        listed: Vec<Observed>,
        missing: &mut BTreeMap<BlockId, Missing>,
    ) -> Vec<Seen> {
        let is_of = |o: &Observed, b: &BlockRecord| is_of(&o.id, &o.name, b);
        missing.retain(|id, _| blocks.iter().any(|b| b.block == *id && !listed.iter().any(|o| is_of(o, b))));
        let mut seen: Vec<Seen> = listed
            .iter()
            .filter(|o| blocks.iter().any(|b| is_of(o, b)))
            .map(|o| seen_of(o.clone()))
            .collect();
        let mut lookups = 0;
        let submits = self.submitted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let under_way = |b: &BlockRecord| submits.get(&b.block) == Some(&None);
        for record in blocks.iter().filter(|b| !under_way(b) && !listed.iter().any(|o| is_of(o, b))) {
            let now = Instant::now();
            let entry = missing.entry(record.block).or_insert_with(|| Missing {
                since: now,
                unknown: 0,
                next: now,
                pause: Duration::from_millis(self.rates.poll_ms),
            });
            if now < entry.next || lookups >= LOOKUPS_A_POLL_MAX {
                continue;
            }
            lookups += 1;
            seen.extend(self.look_up(record, entry));
            entry.put_off(Instant::now());
        }
        seen
    }

    /// What other sources know of a block that the status does not list: the scheduler's own, then the file of its supervisor. When all of
    /// them have said for a while that they know nothing, it is over and nobody can tell how.
    fn look_up(&self, record: &BlockRecord, entry: &mut Missing) -> Option<Seen> {
        let known = self.known(record);
        let mut all_answered = true;
        for (step, plan) in self.provider.lookup(&known).iter().enumerate() {
            let output = command::run_within(plan, None, COMMAND_TIME_MAX);
            let found = match &output {
                // A site without accounting need not have its command: who is not here knows nothing. The scheduler itself has to answer.
                Err(CommandError::NotThere { .. }) if step > 0 => Ok(None),
                Ok(output) => self.provider.looked_up(&known, step, output).map_err(|e| chain(&e)),
                Err(error) => Err(chain(error)),
            };
            match found {
                Ok(Some(observed)) => return Some(seen_of(observed)),
                Ok(None) => {}
                Err(words) => {
                    tracing::warn!(block = %record.block, words, "a block cannot be looked up");
                    all_answered = false;
                    // A scheduler that hangs is not asked for each block in turn.
                    if matches!(output, Err(CommandError::Timeout { .. })) {
                        break;
                    }
                }
            }
        }
        let ended = |end| Seen {
            scheduler_id: record.scheduler_id.clone().unwrap_or_default(),
            name: record.name.clone(),
            state: BlockState::Ended(end),
            walltime_left_ms: None,
            restarts: None,
        };
        if !all_answered {
            return None;
        }
        entry.unknown += 1;
        if let Some(end) = written_end(&self.dir(record)) {
            return Some(ended(end));
        }
        // Without an id it may not have come up yet: the core waits for that.
        let known = record.scheduler_id.is_some();
        let gone = known && entry.unknown >= GONE_LOOKUPS && entry.since.elapsed() >= GONE_AFTER;
        gone.then(|| {
            ended(BlockEnd::Unknown(
                "the scheduler does not know it any more, and its supervisor wrote nothing".into(),
            ))
        })
    }

    pub fn cancel(&self, record: &BlockRecord, round: u32) {
        let result =
            self.provider.cancel(&self.known(record), round).map_err(|e| chain(&e)).and_then(|plan| {
                let output = command::run_within(&plan, None, COMMAND_TIME_MAX).map_err(|e| chain(&e))?;
                self.provider.cancelled(&output).map_err(|e| chain(&e))
            });
        self.desk.put(Input::BlockCancelled { block: record.block, result });
    }

    fn known(&self, record: &BlockRecord) -> KnownBlock {
        KnownBlock {
            name: record.name.clone(),
            id: record.scheduler_id.clone(),
            dir: self.dir(record).to_string_lossy().into_owned(),
        }
    }

    fn dir(&self, record: &BlockRecord) -> PathBuf {
        blockdir::path(&self.options, record.block)
    }
}

fn seen_of(observed: Observed) -> Seen {
    Seen {
        scheduler_id: observed.id,
        name: observed.name,
        state: observed.state,
        walltime_left_ms: observed.walltime_left_ms,
        restarts: observed.restarts,
    }
}

/// Whether what is told of a job is told of this block: by its name where that is told, as the core does, since schedulers use ids again.
fn is_of(id: &str, name: &str, block: &BlockRecord) -> bool {
    match name {
        "" => block.scheduler_id.as_deref() == Some(id),
        name => name == block.name,
    }
}

/// How a block's pilot ended, as its supervisor wrote.
fn written_end(dir: &Path) -> Option<BlockEnd> {
    let bytes = read(&dir.join(script::END), END_BYTES_MAX).ok()??;
    supervisor::end(&String::from_utf8_lossy(&bytes))
}

/// How a block's script failed is known better to its supervisor than to most schedulers: of codes above 128 some tell the signal, some the code, and Slurm's
/// accounting the one as if it were the other.
fn tell_exactly(state: &mut BlockState, dir: &Path) {
    if let BlockState::Ended(BlockEnd::Failed(_) | BlockEnd::Unknown(_)) = state
        && let Some(end) = written_end(dir)
    {
        *state = BlockState::Ended(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_script_failed_is_known_best_to_its_supervisor_and_why_it_was_ended_to_the_scheduler() {
        let folder = tempfile::tempdir().unwrap();
        let told = |end: BlockEnd| {
            let mut state = BlockState::Ended(end);
            tell_exactly(&mut state, folder.path());
            state
        };
        assert_eq!(told(BlockEnd::Failed(9)), BlockState::Ended(BlockEnd::Failed(9)), "nothing is written");
        std::fs::write(folder.path().join(script::END), "signal 9\n").unwrap();
        // As sacct says of a shell that ended with 137.
        assert_eq!(told(BlockEnd::Failed(9)), BlockState::Ended(BlockEnd::Signal(9)));
        for end in [BlockEnd::Walltime, BlockEnd::Preempted, BlockEnd::NodeFailed] {
            assert_eq!(told(end.clone()), BlockState::Ended(end));
        }
    }
}
