//! What must not hold up the reactor: scheduler commands in one thread, files in another. Orders go in, inputs of the core come back through
//! the waker. Orders of one kind are carried out in order.

use crate::blockdir::{self, Address};
use crate::command::{self, CommandError};
use crate::error::RelayError;
use crate::files::{replace, write_script};
use crate::logs;
use crate::options::RelayOptions;
use pf_protocol::message::AnswerWhat;
use pf_protocol::{BlockId, TaskId};
use pf_providers::{BlockRequest, KnownBlock, Output, Plan, Provider, ProviderError};
use pf_relay_core::{BlockRecord, Input, Roster, Seen, SubmitResult};
use pf_transport::{AllowList, PublicKey, Waker};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Something to do. Bounded by the core: one query, one roster and one read of spools a block are under way at a time.
pub(crate) enum Order {
    Submit { record: BlockRecord, address: Address },
    Query { blocks: Vec<BlockRecord> },
    Cancel { record: BlockRecord },
    SaveRoster { roster: Box<Roster> },
    RefreshTickets { blocks: Vec<BlockRecord>, address: Address, port: String },
    ReadSpools { record: BlockRecord },
    Tidy { keep: Vec<BlockId>, upto: BlockId },
    ReadLog { ask: u64, task: TaskId, from: u64, live: bool },
    ReadBlockLog { ask: u64, record: BlockRecord },
}

/// What both threads share with the node.
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

/// The two threads. They end when this is dropped, after what they are doing.
pub(crate) struct Work {
    scheduler: Sender<Order>,
    files: Sender<Order>,
}

impl Work {
    pub fn start(
        options: &Arc<RelayOptions>,
        provider: Box<dyn Provider>,
        desk: &Arc<Desk>,
    ) -> Result<Work, RelayError> {
        let clerk = |name: &str, provider: Option<Box<dyn Provider>>| {
            let (sender, orders) = channel();
            let clerk = Clerk { options: options.clone(), desk: desk.clone() };
            let body = move || clerk.work(&orders, provider.as_deref());
            let thread = std::thread::Builder::new().name(name.into()).spawn(body);
            thread.map(|_| sender).map_err(RelayError::Thread)
        };
        Ok(Work { scheduler: clerk("pf-scheduler", Some(provider))?, files: clerk("pf-files", None)? })
    }

    /// Gives an order to the thread whose business it is.
    pub fn order(&self, order: Order) {
        let to = match &order {
            Order::Submit { .. } | Order::Query { .. } | Order::Cancel { .. } => &self.scheduler,
            _ => &self.files,
        };
        if to.send(order).is_err() {
            tracing::error!("a thread of the relay has ended; its orders are lost");
        }
    }
}

struct Clerk {
    options: Arc<RelayOptions>,
    desk: Arc<Desk>,
}

impl Clerk {
    fn work(&self, orders: &Receiver<Order>, provider: Option<&dyn Provider>) {
        for order in orders {
            match (order, provider) {
                (Order::Submit { record, address }, Some(provider)) => {
                    self.submit(provider, &record, &address)
                }
                (Order::Query { blocks }, Some(provider)) => {
                    let seen = self.query(provider, &blocks);
                    self.desk.put(Input::Blocks { seen });
                }
                (Order::Cancel { record }, Some(provider)) => {
                    let result = self.cancel(provider, &record);
                    self.desk.put(Input::BlockCancelled { block: record.block, result });
                }
                (order, _) => self.file_work(order),
            }
        }
    }

    fn submit(&self, provider: &dyn Provider, record: &BlockRecord, address: &Address) {
        let result = match blockdir::prepare(&self.options, record, address) {
            Ok(key) => {
                self.desk.let_in(record.block, key);
                self.run_submit(provider, record)
            }
            Err(error) => SubmitResult::Refused(chain(&error)),
        };
        self.desk.put(Input::Submitted { block: record.block, result });
    }

    fn run_submit(&self, provider: &dyn Provider, record: &BlockRecord) -> SubmitResult {
        let mut asks = self.options.asks.get(&record.shape).cloned().unwrap_or_default();
        if record.account.is_some() {
            asks.account.clone_from(&record.account);
        }
        let request = BlockRequest {
            name: record.name.clone(),
            dir: self.dir(record).to_string_lossy().into_owned(),
            program: self.options.program.to_string_lossy().into_owned(),
            nodes: record.nodes,
            walltime_ms: record.walltime_ms,
            exclude: if provider.can_exclude() { record.exclude.clone() } else { Vec::new() },
            asks,
        };
        let plan = match provider.submit(&request) {
            Ok(plan) => plan,
            Err(error) => return SubmitResult::Refused(error.to_string()),
        };
        let output = match self.run(&plan, record) {
            Ok(output) => output,
            Err(Failure::Timeout(words)) => return SubmitResult::Unclear(words),
            Err(Failure::NotRun(words)) => return SubmitResult::Refused(words),
        };
        match provider.submitted(&output) {
            Ok(id) => SubmitResult::Accepted(id),
            Err(ProviderError::Later(words)) => SubmitResult::Later(words),
            Err(ProviderError::NotUnderstood(words)) => SubmitResult::Unclear(words),
            Err(error) => SubmitResult::Refused(error.to_string()),
        }
    }

    fn query(&self, provider: &dyn Provider, blocks: &[BlockRecord]) -> Result<Vec<Seen>, String> {
        let known: Vec<KnownBlock> = blocks.iter().map(|b| self.known(b)).collect();
        let output = command::run(&provider.status(&known), None).map_err(|e| chain(&e))?;
        let seen = provider.observed(&output).map_err(|e| chain(&e))?;
        let seen = seen.into_iter().map(|o| Seen {
            scheduler_id: o.id,
            name: o.name,
            state: o.state,
            walltime_left_ms: o.walltime_left_ms,
            restarts: o.restarts,
        });
        Ok(seen.collect())
    }

    fn cancel(&self, provider: &dyn Provider, record: &BlockRecord) -> Result<(), String> {
        let plan = provider.cancel(&self.known(record), 0).map_err(|e| chain(&e))?;
        let output = command::run(&plan, None).map_err(|e| chain(&e))?;
        provider.cancelled(&output).map_err(|e| chain(&e))
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

    fn run(&self, plan: &Plan, record: &BlockRecord) -> Result<Output, Failure> {
        let script = plan.script.as_ref().map(|(name, text)| (self.dir(record).join(name), text));
        if let Some((path, text)) = &script {
            write_script(path, text).map_err(|e| Failure::NotRun(chain(&e)))?;
        }
        let stdin = script.filter(|_| plan.script_on_stdin).map(|(path, _)| path);
        command::run(plan, stdin.as_deref()).map_err(|error| match &error {
            CommandError::Timeout { .. } => Failure::Timeout(chain(&error)),
            CommandError::Start { .. } => Failure::NotRun(chain(&error)),
        })
    }

    fn file_work(&self, order: Order) {
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
            Order::Tidy { keep, upto } => {
                if let Err(error) = blockdir::tidy(&self.options.blocks_dir, &keep, upto) {
                    tracing::warn!(error = chain(&error), "folders of old blocks stay");
                }
            }
            Order::ReadLog { ask, task, from, live } => {
                let what = logs::read_task(&self.options.output_dir, task, from, live);
                self.desk.put(Input::LogRead { ask, what });
            }
            Order::ReadBlockLog { ask, record } => {
                let what: AnswerWhat = logs::read_block(&self.dir(&record));
                self.desk.put(Input::LogRead { ask, what });
            }
            Order::Submit { .. } | Order::Query { .. } | Order::Cancel { .. } => {
                tracing::error!("an order for the scheduler came to the files' thread");
            }
        }
    }
}

/// A command without an answer.
enum Failure {
    /// It may have done its work.
    Timeout(String),
    /// It did not.
    NotRun(String),
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
    serde_json::from_slice(&bytes).map_err(|source| RelayError::Damaged { path, source })
}
