//! What must not hold up the reactor: scheduler commands in threads of their own (`scheduler`), files in another. Orders go in, inputs of the core come back through
//! the waker. Orders of one kind are carried out in order.

use crate::blockdir::{self, Address};
use crate::error::RelayError;
use crate::files::replace;
use crate::logs;
use crate::options::RelayOptions;
use crate::payload_files::{self, PayloadFiles};
use crate::program::{self, Program};
use crate::rates::Rates;
use crate::scheduler::Scheduler;
use bytes::Bytes;
use pf_protocol::message::AnswerWhat;
use pf_protocol::report::BlockState;
use pf_protocol::{BlockId, ContentHash, JobId, TaskId};
use pf_providers::Provider;
use pf_relay_core::{BlockRecord, Input, Roster};
use pf_transport::{AllowList, PublicKey, Waker};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Something to do. Bounded by the core: one query, one roster and one read of spools a block are under way at a time.
pub(crate) enum Order {
    Submit { record: BlockRecord, address: Address },
    Query { blocks: Vec<BlockRecord> },
    Cancel { record: BlockRecord, round: u32 },
    SaveRoster { roster: Box<Roster> },
    RefreshTickets { blocks: Vec<BlockRecord>, address: Address, port: String },
    ReadSpools { record: BlockRecord },
    Tidy { keep: Vec<BlockId>, live: Vec<BlockId>, upto: BlockId },
    ReadLog { ask: u64, task: TaskId, from: u64, live: bool },
    ReadBlockLog { ask: u64, record: BlockRecord },
    PayloadWrite { job: JobId, hash: ContentHash, offset: u64, bytes: Bytes, last: bool },
    PayloadRead { job: JobId, hash: ContentHash, offset: u64 },
    PayloadDrop { job: JobId, hash: ContentHash, value: bool },
    PayloadsDrop { jobs: Vec<JobId> },
    PayloadsKeep { jobs: BTreeSet<JobId> },
}

/// What the threads share with the node.
#[derive(Default)]
pub(crate) struct Desk {
    done: Mutex<Vec<Input>>,
    pub waker: OnceLock<Waker>,
    pub allow: AllowList,
    /// Keys of blocks that are let in.
    pub keys: Mutex<BTreeMap<BlockId, PublicKey>>,
}

impl Desk {
    pub fn put(&self, input: Input) {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push(input);
        // Before the reactor runs nobody sleeps: `on_start` looks here.
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }

    pub fn take(&self) -> Vec<Input> {
        std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets the processes of a block in.
    pub fn let_in(&self, block: BlockId, key: PublicKey) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).insert(block, key);
        self.allow.insert(key, block.0);
    }

    /// Shuts them out.
    pub fn shut_out(&self, block: BlockId) {
        if let Some(key) = self.keys.lock().unwrap_or_else(PoisonError::into_inner).remove(&block) {
            self.allow.remove(&key);
        }
    }
}

/// The threads. They end when this is dropped, after what they are doing.
pub(crate) struct Work {
    submits: Sender<Order>,
    queries: Sender<Order>,
    cancels: Sender<Order>,
    files: Sender<Order>,
    payloads: Sender<Order>,
}

impl Work {
    pub fn start(
        options: &Arc<RelayOptions>,
        provider: Box<dyn Provider>,
        desk: &Arc<Desk>,
    ) -> Result<Work, RelayError> {
        let rates = Rates {
            dir: options.rates_dir.clone(),
            poll_ms: options.poll_ms.unwrap_or(provider.poll_ms()),
            submit_ms: options.submit_ms.unwrap_or(provider.submit_ms()),
        };
        let program = Arc::new(Program::new(Path::new(program::OWN), options.blocks_dir.join("bin")));
        let scheduler = Arc::new(Scheduler {
            options: options.clone(),
            desk: desk.clone(),
            provider,
            program: program.clone(),
            rates,
            began_ms: crate::rates::unix_ms(),
            submitted: Mutex::default(),
        });
        // A thread of their own: a roster does not wait behind a gigabyte.
        let mut porter =
            Porter { files: PayloadFiles::new(payload_files::dir(options))?, desk: desk.clone() };
        let logs = logs::Logs::default();
        let mut clerk = Clerk { options: options.clone(), desk: desk.clone(), logs, program };
        Ok(Work {
            submits: scheduler_thread("pf-submit", &scheduler)?,
            queries: scheduler_thread("pf-status", &scheduler)?,
            cancels: scheduler_thread("pf-cancel", &scheduler)?,
            files: thread("pf-files", move |order| clerk.file_work(order))?,
            payloads: thread("pf-payloads", move |order| porter.payload_work(order))?,
        })
    }

    /// Gives an order to the thread whose business it is.
    pub fn order(&self, order: Order) {
        let to = match &order {
            Order::Submit { .. } => &self.submits,
            Order::Query { .. } => &self.queries,
            Order::Cancel { .. } => &self.cancels,
            Order::PayloadWrite { .. }
            | Order::PayloadRead { .. }
            | Order::PayloadDrop { .. }
            | Order::PayloadsDrop { .. }
            | Order::PayloadsKeep { .. } => &self.payloads,
            _ => &self.files,
        };
        if to.send(order).is_err() {
            tracing::error!("a thread of the relay has ended; its orders are lost");
        }
    }
}

/// A thread that carries out one order after another.
fn thread(name: &str, mut work: impl FnMut(Order) + Send + 'static) -> Result<Sender<Order>, RelayError> {
    let (sender, orders) = channel();
    let thread = std::thread::Builder::new().name(name.into());
    let thread = thread.spawn(move || orders.into_iter().for_each(&mut work));
    thread.map(|_| sender).map_err(RelayError::Thread)
}

fn scheduler_thread(name: &str, scheduler: &Arc<Scheduler>) -> Result<Sender<Order>, RelayError> {
    let scheduler = scheduler.clone();
    let mut missing = BTreeMap::new();
    thread(name, move |order| match order {
        Order::Submit { record, address } => scheduler.submit(&record, &address),
        Order::Query { blocks } => scheduler.query(&blocks, &mut missing),
        Order::Cancel { record, round } => scheduler.cancel(&record, round),
        _ => tracing::error!("an order for the files came to a thread of the scheduler"),
    })
}

struct Clerk {
    options: Arc<RelayOptions>,
    desk: Arc<Desk>,
    logs: logs::Logs,
    program: Arc<Program>,
}

impl Clerk {
    fn dir(&self, record: &BlockRecord) -> PathBuf {
        blockdir::path(&self.options, record.block)
    }

    fn file_work(&mut self, order: Order) {
        match order {
            Order::SaveRoster { roster } => {
                let version = roster.version;
                self.desk.put(match save_roster(&self.options, &roster) {
                    Ok(()) => Input::RosterSaved { version },
                    Err(error) => Input::RosterFailed { error: chain(&error) },
                });
            }
            Order::RefreshTickets { blocks, address, port } => {
                for record in blocks {
                    if let Err(error) = blockdir::refresh(&self.options, record.block, &address) {
                        tracing::warn!(error = chain(&error), "a ticket cannot be renewed");
                    }
                }
                if let Err(error) = replace(&port_path(&self.options), port.as_bytes()) {
                    tracing::warn!(error = chain(&error), "the port cannot be written down");
                }
            }
            Order::ReadSpools { record } => {
                let (block, dir) = (record.block, self.dir(&record));
                self.desk.put(Input::BlockLog { block, tail: blockdir::last_words(&dir) });
                let result = blockdir::spools(&dir).map_err(|e| chain(&e));
                self.desk.put(Input::SpoolsRead { block, result });
            }
            Order::Tidy { keep, live, upto } => {
                let folders = blockdir::tidy(&self.options.blocks_dir, &keep, upto);
                let used = blockdir::programs(&self.options, &live);
                if let Err(error) = folders.and(used).and_then(|used| self.program.tidy(&used)) {
                    tracing::warn!(error = chain(&error), "what old blocks left stays");
                }
            }
            Order::ReadLog { ask, task, from, live } => {
                let what = self.logs.read_task(&self.options.output_dir, task, from, live);
                self.desk.put(Input::LogRead { ask, what });
            }
            Order::ReadBlockLog { ask, record } => {
                let what: AnswerWhat = logs::read_block(&self.dir(&record));
                self.desk.put(Input::LogRead { ask, what });
            }
            _ => tracing::error!("an order for another thread came to the files' thread"),
        }
    }
}

/// Carries large payloads between the core and their files.
struct Porter {
    files: PayloadFiles,
    desk: Arc<Desk>,
}

impl Porter {
    fn payload_work(&mut self, order: Order) {
        match order {
            Order::PayloadWrite { job, hash, offset, bytes, last } => {
                let result = self.files.write(job, hash, offset, &bytes, last).map_err(|e| e.to_string());
                self.desk.put(Input::PayloadWritten { job, hash, offset, result });
            }
            Order::PayloadRead { job, hash, offset } => {
                let result = self.files.read(job, hash, offset).map_err(|e| e.to_string());
                self.desk.put(Input::PayloadRead { job, hash, offset, result });
            }
            Order::PayloadDrop { job, hash, value } => self.files.remove(job, hash, value),
            Order::PayloadsDrop { jobs } => stays(self.files.remove_of(|job| jobs.contains(&job))),
            Order::PayloadsKeep { jobs } => stays(self.files.keep(&jobs)),
            _ => tracing::error!("an order for another thread came to the payloads' thread"),
        }
    }
}

fn stays(result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "files of payloads that nobody needs stay");
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn roster_path(options: &RelayOptions) -> PathBuf {
    options.state_dir.join("roster.json")
}

/// File with the port that was used last: managers find a restarted relay without a new ticket.
pub(crate) fn port_path(options: &RelayOptions) -> PathBuf {
    options.state_dir.join("port")
}

fn save_roster(options: &RelayOptions, roster: &Roster) -> Result<(), RelayError> {
    let path = roster_path(options);
    let bytes = serde_json::to_vec(roster);
    replace(&path, &bytes.map_err(|source| RelayError::Damaged { path: path.clone(), source })?)
}

/// The roster of the relay before this one; an empty one if there was none.
pub(crate) fn load_roster(options: &RelayOptions) -> Result<Roster, RelayError> {
    let path = roster_path(options);
    let Some(bytes) = crate::files::read(&path, crate::limits::ROSTER_BYTES_MAX)? else {
        return Ok(Roster::default());
    };
    let mut roster = serde_json::from_slice(&bytes).map_err(|source| RelayError::Damaged { path, source })?;
    forget_unasked(&mut roster, |block| blockdir::path(options, block).exists());
    Ok(roster)
}

/// Takes out the blocks whose submit had not begun when an earlier relay ended: a block has its folder before the scheduler is asked for it. What may have
/// been submitted has to be waited for; these have not.
fn forget_unasked(roster: &mut Roster, has_folder: impl Fn(BlockId) -> bool) {
    let unasked = |b: &BlockRecord| b.state == BlockState::Intended && b.scheduler_id.is_none();
    roster.blocks.retain(|b| !unasked(b) || has_folder(b.block));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_was_never_asked_for_is_forgotten() {
        let block = |n, state, id: Option<&str>| BlockRecord {
            block: BlockId(n),
            state,
            scheduler_id: id.map(Into::into),
            ..BlockRecord::default()
        };
        let mut roster = Roster {
            next_block: 5,
            blocks: vec![
                block(1, BlockState::Intended, None),
                block(2, BlockState::Intended, None),
                block(3, BlockState::Intended, Some("7")),
                block(4, BlockState::Queued(String::new()), None),
            ],
            ..Roster::default()
        };
        forget_unasked(&mut roster, |id| id == BlockId(2));
        let left: Vec<u64> = roster.blocks.iter().map(|b| b.block.0).collect();
        assert_eq!(left, [2, 3, 4], "2 has its folder: it may have been submitted");
        assert_eq!(roster.next_block, 5, "its number is not given again");
    }
}
