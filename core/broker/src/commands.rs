//! What clients ask to be changed: checked, recorded, answered once synced. Queries are in [`crate::queries`].

use crate::broker::{Broker, Turn};
use crate::io::PutError;
use crate::items::{failed_items, put_items};
use crate::job::{Job, Large};
use crate::lifecycle::CancelOrder;
use crate::limits::{ENDPOINTS_MAX, FUNCTION_BYTES_MAX, FUNCTIONS_BYTES_MAX, JOBS_MAX, TOKENS_MAX};
use crate::load::Load;
use crate::record::{
    EndpointPut, EndpointRemoved, FunctionPut, JobClosed, JobSubmitted, PayloadPut, Piece, TasksAppended,
    TokenAdded, TokenRevoked,
};
use crate::requests::{Caller, Code, Refusal, Reply, Request, Tasks, Verb};
use crate::state::EndpointState;
use crate::validate;
use bytes::Bytes;
use pf_protocol::api::{AppendReply, CancelReply, CancelRequest, SubmitReply};
use pf_protocol::job::{ArraySpec, Body, Function, JobSpec, content_hash};
use pf_protocol::outcome::OutcomeKind;
use pf_protocol::{BlobRef, ContentHash, EndpointId, FunctionId, JobId, JobKey, Ranges};
use std::collections::BTreeMap;

/// A job to be accepted.
#[derive(Debug)]
struct NewJob {
    key: JobKey,
    hash: ContentHash,
    spec: JobSpec,
    tasks: Tasks,
    open: bool,
    /// Payloads that its tasks name, kept for another job already.
    large: BTreeMap<ContentHash, Large>,
}

/// A job that is tried again, while its items are read.
#[derive(Debug)]
pub(crate) struct RetryPlan {
    ticket: u64,
    caller: Caller,
    key: JobKey,
    hash: ContentHash,
    spec: JobSpec,
    /// The old job, and positions in it.
    job: JobId,
    tasks: Ranges,
    pieces: Vec<Piece>,
}

impl Broker {
    pub(crate) fn request(&mut self, ticket: u64, caller: Caller, request: Request, turn: &mut Turn<'_>) {
        let reply = match request {
            Request::Submit { key, hash, spec, tasks, open } => {
                let large = BTreeMap::new();
                self.submit(caller, NewJob { key, hash, spec: *spec, tasks, open, large }, turn)
            }
            Request::Append { job, first, tasks } => self.append(caller, job, first, &tasks, turn),
            Request::PutPiece { job, payload, offset, bytes } => {
                self.put_piece(caller, job, payload, offset, &bytes, turn)
            }
            Request::Payload { job, hash } => self.payload(caller, job, hash),
            Request::Close { job } => self.close(caller, job, turn),
            Request::Cancel { job, how } => self.cancel(caller, job, how, turn),
            Request::Retry { job, key } => match self.plan_retry(ticket, caller, job, key) {
                Err(refusal) => Err(refusal),
                Ok(plan) => return self.start_retry(plan, turn),
            },
            Request::Forget { job } => self.forget(caller, job, turn),
            Request::ClientGone { group } => Ok(self.client_gone(caller, group, turn)),
            Request::PutFunction { id, function } => self.put_function(caller, id, function, turn),
            Request::PutEndpoint { name, relay_key } => self.put_endpoint(caller, &name, relay_key, turn),
            Request::RemoveEndpoint { name } => self.remove_endpoint(caller, &name, turn),
            Request::Verb { name, verb } => match self.own_endpoint(caller, &name) {
                Err(refusal) => Err(refusal),
                Ok(endpoint) => return self.verb(ticket, endpoint, verb, turn),
            },
            Request::AddToken { name, hash } => self.add_token(caller, name, hash, turn),
            Request::RevokeToken { name } => self.revoke_token(caller, name, turn),
            query => return self.query(ticket, caller, query, turn),
        };
        self.reply(ticket, reply, turn);
    }

    /// The job, if the caller may see it: what belongs to others is as if it were not there.
    pub(crate) fn own_job(&self, caller: Caller, id: JobId) -> Result<&Job, Refusal> {
        let job = self.state.jobs.get(&id).filter(|job| job.owner == caller.owner || caller.is_broker_owner);
        job.ok_or_else(|| {
            Refusal::new(Code::UnknownJob, format!("there is no job {id}"))
                .hint("`pf job list` shows your jobs")
        })
    }

    pub(crate) fn refuse_under_pressure(&self) -> Result<(), Refusal> {
        match &self.pressure {
            None => Ok(()),
            Some(why) => Err(not_put("new work is refused", why)),
        }
    }

    fn submit(&mut self, caller: Caller, new: NewJob, turn: &mut Turn<'_>) -> Result<Reply, Refusal> {
        if let Some(reply) = self.repeated(caller, new.key, new.hash)? {
            return Ok(reply);
        }
        self.refuse_under_pressure()?;
        validate::spec(&new.spec)?;
        validate::tasks(&new.spec, 0, &new.tasks, &new.large)?;
        let (endpoint, name) = self.choose_endpoint(caller, &new.spec)?;
        if let Some(node) = self.largest_node(endpoint) {
            validate::fits(&new.spec.resources, &node, &name)?;
        }
        self.check_references(caller, &new.spec)?;
        if self.state.jobs.len() >= JOBS_MAX {
            let refusal = Refusal::new(Code::TooMany, format!("{JOBS_MAX} jobs are kept already"));
            return Err(refusal.hint("`pf job forget` drops ended ones"));
        }
        let id = JobId(self.state.last_job + 1);
        let NewJob { key, hash, spec, tasks, open, large } = new;
        let pieces = self.put_items(id, 0, &tasks, turn)?;
        let (at_us, owner, count) = (turn.at_us, caller.owner, tasks.count);
        let record = JobSubmitted { at_us, job: id, key, hash, owner, endpoint, spec, count, open, pieces };
        if let Err(refusal) = self.log(record, turn) {
            Self::drop_payloads(id, turn);
            return Err(refusal);
        }
        for (hash, Large { len, blobs }) in large {
            blobs.iter().for_each(|blob| turn.blobs.keep(id, *blob));
            self.log(PayloadPut { at_us, job: id, hash, len, blobs }, turn)?;
        }
        self.begin_job(id);
        if let Some(live) = self.jobs.get_mut(&id) {
            live.queued = Ranges::new();
            live.assigned = 0;
        }
        self.queue_after_sync(id, Ranges::from_range(0, count), turn);
        Ok(Reply::Submitted(SubmitReply { job: id, tasks: count, endpoint: name, repeated: false }))
    }

    /// The answer to a key that is known already.
    fn repeated(&self, caller: Caller, key: JobKey, hash: ContentHash) -> Result<Option<Reply>, Refusal> {
        let known = self.state.keys.get(&(caller.owner, key)).and_then(|id| self.state.jobs.get(id));
        let Some(job) = known else { return Ok(None) };
        if job.hash != hash {
            let message = format!("key {key} was used for job {} with another content", job.id);
            return Err(Refusal::new(Code::Conflict, message).hint("use a new random key for each job"));
        }
        let endpoint = self.endpoint_name(job.endpoint);
        Ok(Some(Reply::Submitted(SubmitReply { job: job.id, tasks: job.total, endpoint, repeated: true })))
    }

    /// The endpoint that the job names, or the only one. It must be the caller's: an owner decides who runs there, and none has a way yet to let
    /// others in.
    fn choose_endpoint(&self, caller: Caller, spec: &JobSpec) -> Result<(EndpointId, String), Refusal> {
        let own = || self.state.endpoints.iter().filter(move |(_, e)| may_use(caller, e));
        let names = || match own().map(|(_, e)| e.name.as_str()).collect::<Vec<_>>() {
            names if names.is_empty() => "there is none yet".into(),
            names => format!("known are: {}", names.join(", ")),
        };
        if let Some(name) = spec.endpoints.first() {
            let id = self.own_endpoint(caller, name).map_err(|refusal| refusal.hint(names()))?;
            return Ok((id, name.clone()));
        }
        match (own().next(), own().nth(1)) {
            (Some((id, endpoint)), None) => Ok((*id, endpoint.name.clone())),
            _ => Err(Refusal::new(
                Code::UnknownEndpoint,
                "the job names no endpoint, and there is not exactly one",
            )
            .hint(names())),
        }
    }

    pub(crate) fn largest_node(&self, endpoint: EndpointId) -> Option<pf_protocol::resources::NodeCapacity> {
        self.endpoints.get(&endpoint)?.report.as_ref()?.largest_node.clone()
    }

    fn check_references(&self, caller: Caller, spec: &JobSpec) -> Result<(), Refusal> {
        if let Body::Python(python) = &spec.body {
            let known = self.state.functions.get(&python.function);
            if !known.is_some_and(|f| f.owners.contains(&caller.owner)) {
                let message = format!("there is no function {}", python.function);
                return Err(Refusal::new(Code::UnknownFunction, message).hint("register it first"));
            }
        }
        spec.after.iter().try_for_each(|after| self.own_job(caller, after.job).map(drop))
    }

    fn put_items(
        &mut self,
        id: JobId,
        first: u32,
        tasks: &Tasks,
        turn: &mut Turn<'_>,
    ) -> Result<Vec<Piece>, Refusal> {
        put_items(id, first, tasks, &mut self.cache, turn.blobs).map_err(|why| {
            self.cache.remove_job(id);
            not_put("the job was not accepted", &why)
        })
    }

    fn append(
        &mut self,
        caller: Caller,
        id: JobId,
        first: u32,
        tasks: &Tasks,
        turn: &mut Turn<'_>,
    ) -> Result<Reply, Refusal> {
        let job = self.own_job(caller, id)?;
        let total = job.total;
        let done = Ok(Reply::Appended(AppendReply { tasks: total }));
        if u64::from(first) + u64::from(tasks.count) <= u64::from(total) {
            return done;
        }
        if first != total {
            let message =
                format!("job {id} has {total} tasks, an append at {first} would leave a hole or overlap");
            return Err(Refusal::new(Code::Conflict, message).hint(format!("append from {total} on")));
        }
        if !job.open {
            let why = if job.cancel.whole { "was cancelled" } else { "is closed" };
            return Err(Refusal::new(Code::Conflict, format!("job {id} {why} and takes no more tasks")));
        }
        validate::tasks(&job.spec, total, tasks, &job.large)?;
        self.refuse_under_pressure()?;
        let pieces = self.put_items(id, first, tasks, turn)?;
        let count = tasks.count;
        self.log(TasksAppended { at_us: turn.at_us, job: id, first, count, pieces }, turn)?;
        self.queue_after_sync(id, Ranges::from_range(first, count), turn);
        Ok(Reply::Appended(AppendReply { tasks: total + count }))
    }

    fn close(&mut self, caller: Caller, id: JobId, turn: &mut Turn<'_>) -> Result<Reply, Refusal> {
        let job = self.own_job(caller, id)?;
        let (tasks, open) = (job.total, job.open);
        if open {
            self.log(JobClosed { at_us: turn.at_us, job: id }, turn)?;
            self.to_check.insert(id);
        }
        Ok(Reply::Appended(AppendReply { tasks }))
    }

    fn cancel(
        &mut self,
        caller: Caller,
        id: JobId,
        how: CancelRequest,
        turn: &mut Turn<'_>,
    ) -> Result<Reply, Refusal> {
        self.own_job(caller, id)?;
        let CancelRequest { tasks, kill, force, queued_only } = how;
        let reason = if force { "cancelled by force: it may still run" } else { "cancelled" };
        let order = CancelOrder { tasks, kill, force, queued_only, reason: reason.into() };
        let (cancelled, asked) = self.cancel_tasks(id, &order, turn);
        Ok(Reply::Cancelled(CancelReply { cancelled, asked }))
    }

    /// What is to be tried again, and with which items.
    fn plan_retry(&self, ticket: u64, caller: Caller, id: JobId, key: JobKey) -> Result<RetryPlan, Refusal> {
        let job = self.own_job(caller, id)?;
        if !job.is_over() {
            let refusal = Refusal::new(Code::Conflict, format!("job {id} is not over"));
            return Err(refusal.hint(format!("`pf wait {id}` waits for it")));
        }
        let failed: Ranges = job
            .ended
            .rows_from(0)
            .filter(|row| row.kind != OutcomeKind::Value)
            .map(|row| row.index)
            .collect();
        if failed.is_empty() {
            return Err(Refusal::new(Code::Conflict, format!("no task of job {id} failed")));
        }
        let labels = failed.iter().map(|index| job.spec.array.label(index));
        let labels = labels.map(u32::try_from).collect::<Result<Ranges, _>>().map_err(|_| {
            Refusal::new(Code::NotSupported, format!("the labels of job {id} are too large to be kept"))
        })?;
        let spec = JobSpec {
            array: ArraySpec { labels, ..ArraySpec::default() },
            after: Vec::new(),
            ..job.spec.clone()
        };
        let has_failed =
            |piece: &&Piece| !failed.intersection(&Ranges::from_range(piece.first, piece.count)).is_empty();
        let pieces = job.pieces.iter().filter(has_failed).copied().collect();
        let hash = content_hash(format!("retry of {id}").as_bytes());
        Ok(RetryPlan { ticket, caller, key, hash, spec, job: id, tasks: failed, pieces })
    }

    fn start_retry(&mut self, plan: RetryPlan, turn: &mut Turn<'_>) {
        if plan.pieces.is_empty() {
            return self.retry_loaded(plan, Ok(Vec::new()), turn);
        }
        let blobs: Vec<BlobRef> = plan.pieces.iter().map(|p| p.blob).collect();
        self.start_load(Load::Retry(Box::new(plan)), blobs, turn);
    }

    pub(crate) fn retry_loaded(
        &mut self,
        plan: RetryPlan,
        result: Result<Vec<Bytes>, String>,
        turn: &mut Turn<'_>,
    ) {
        let RetryPlan { ticket, caller, key, hash, spec, job, tasks, pieces } = plan;
        let reply = failed_items(&tasks, &pieces, result).and_then(|tasks| {
            let large = self.named_of(job, &tasks);
            let new = NewJob { key, hash, spec, tasks, open: false, large };
            self.submit(caller, new, turn)
        });
        self.reply(ticket, reply, turn);
    }

    fn forget(&mut self, caller: Caller, id: JobId, turn: &mut Turn<'_>) -> Result<Reply, Refusal> {
        if !self.own_job(caller, id)?.is_over() {
            let refusal = Refusal::new(Code::Conflict, format!("job {id} is not over"));
            return Err(refusal.hint(format!("`pf cancel {id}` ends it")));
        }
        self.drop_job(id, false, turn);
        Ok(Reply::Done)
    }

    fn client_gone(&mut self, caller: Caller, group: u64, turn: &mut Turn<'_>) -> Reply {
        let with_client = |id: &&JobId| {
            let job = self.state.jobs.get(id);
            job.is_some_and(|j| j.owner == caller.owner && j.spec.group == group && j.spec.end_with_client)
        };
        let jobs: Vec<JobId> = self.jobs.keys().filter(with_client).copied().collect();
        for id in jobs {
            self.cancel_tasks(id, &CancelOrder::whole("its client went away".into()), turn);
        }
        Reply::Done
    }

    fn put_function(
        &mut self,
        caller: Caller,
        id: FunctionId,
        function: Function,
        turn: &mut Turn<'_>,
    ) -> Result<Reply, Refusal> {
        validate::name("the function's name", &function.name)?;
        if function.bytes.len() > FUNCTION_BYTES_MAX {
            let message = format!(
                "the function has {} bytes, {FUNCTION_BYTES_MAX} are the limit",
                function.bytes.len()
            );
            return Err(
                Refusal::new(Code::TooLarge, message).hint("pass large data as arguments or in files")
            );
        }
        if function.id() != id {
            return Err(Refusal::new(
                Code::BadRequest,
                format!("the function's id is {}, not {id}", function.id()),
            ));
        }
        let known = self.state.functions.get(&id).is_some_and(|f| f.owners.contains(&caller.owner));
        if !known {
            self.refuse_under_pressure()?;
            let held: usize = self.state.functions.values().map(|f| f.bytes.len()).sum();
            if held + function.bytes.len() > FUNCTIONS_BYTES_MAX {
                let message =
                    format!("functions take {held} bytes already, {FUNCTIONS_BYTES_MAX} are the limit");
                return Err(Refusal::new(Code::TooMany, message));
            }
            let Function { kind, bytes, name } = function;
            let (at_us, owner) = (turn.at_us, caller.owner);
            self.log(FunctionPut { at_us, owner, function: id, kind, name, bytes }, turn)?;
        }
        self.function_row(caller, id).map(Reply::Function)
    }

    /// The endpoint, if it is the caller's.
    pub(crate) fn own_endpoint(&self, caller: Caller, name: &str) -> Result<EndpointId, Refusal> {
        let Some((id, endpoint)) = self.state.endpoint_named(name) else {
            return Err(Refusal::new(Code::UnknownEndpoint, format!("there is no endpoint {name:?}"))
                .hint("`pf endpoint list` shows them"));
        };
        if !may_use(caller, endpoint) {
            return Err(Refusal::new(Code::Forbidden, format!("endpoint {name} belongs to somebody else")));
        }
        Ok(id)
    }

    fn put_endpoint(
        &mut self,
        caller: Caller,
        name: &str,
        relay_key: Option<[u8; 32]>,
        turn: &mut Turn<'_>,
    ) -> Result<Reply, Refusal> {
        validate::plain_name("the endpoint's name", name)?;
        let relay_key = relay_key.map(ContentHash);
        let id = match self.state.endpoint_named(name) {
            Some(_) => self.own_endpoint(caller, name)?,
            None if self.state.endpoints.len() >= ENDPOINTS_MAX => {
                return Err(Refusal::new(
                    Code::TooMany,
                    format!("there are {ENDPOINTS_MAX} endpoints already"),
                ));
            }
            None => EndpointId(self.state.last_endpoint + 1),
        };
        let before = self.state.endpoints.get(&id);
        if before.is_none_or(|e| e.relay_key != relay_key) {
            let owner = before.map_or(caller.owner, |e| e.owner);
            let (at_us, name) = (turn.at_us, name.to_owned());
            self.log(EndpointPut { at_us, endpoint: id, name, owner, relay_key }, turn)?;
            self.endpoints.entry(id).or_default();
        }
        self.endpoint_row(id).map(|row| Reply::Endpoint(Box::new(row)))
    }

    fn remove_endpoint(&mut self, caller: Caller, name: &str, turn: &mut Turn<'_>) -> Result<Reply, Refusal> {
        let id = self.own_endpoint(caller, name)?;
        let live = self.endpoints.get(&id);
        if let Some(jobs) = live.map(|e| e.jobs.len()).filter(|jobs| *jobs > 0) {
            let refusal =
                Refusal::new(Code::Conflict, format!("{jobs} jobs of endpoint {name} are not over"));
            return Err(refusal.hint("cancel them first"));
        }
        if let Some(link) = live.and_then(|e| e.link.as_ref()) {
            let message = format!("endpoint {name} is served by process {} on {}", link.pid, link.host);
            return Err(
                Refusal::new(Code::Conflict, message).hint(format!("`pf endpoint stop {name}` stops it"))
            );
        }
        self.log(EndpointRemoved { at_us: turn.at_us, endpoint: id }, turn)?;
        self.endpoints.remove(&id);
        Ok(Reply::Done)
    }

    fn verb(&mut self, ticket: u64, endpoint: EndpointId, verb: Verb, turn: &mut Turn<'_>) {
        self.ask(ticket, endpoint, verb.into(), None, turn);
    }

    fn add_token(
        &mut self,
        caller: Caller,
        name: String,
        hash: ContentHash,
        turn: &mut Turn<'_>,
    ) -> Result<Reply, Refusal> {
        validate::plain_name("the token's name", &name)?;
        if self.state.tokens.contains_key(&(caller.owner, name.clone())) {
            return Err(Refusal::new(Code::Conflict, format!("there is a token {name} already"))
                .hint("revoke it first, or take another name"));
        }
        if self.state.tokens.len() >= TOKENS_MAX {
            return Err(Refusal::new(Code::TooMany, format!("there are {TOKENS_MAX} tokens already")));
        }
        self.log(TokenAdded { at_us: turn.at_us, owner: caller.owner, name, hash }, turn)?;
        Ok(Reply::Done)
    }

    fn revoke_token(&mut self, caller: Caller, name: String, turn: &mut Turn<'_>) -> Result<Reply, Refusal> {
        if !self.state.tokens.contains_key(&(caller.owner, name.clone())) {
            return Err(Refusal::new(Code::UnknownToken, format!("there is no token {name:?}")));
        }
        self.log(TokenRevoked { at_us: turn.at_us, owner: caller.owner, name }, turn)?;
        Ok(Reply::Done)
    }
}

/// Whether an endpoint is there for the caller.
pub(crate) fn may_use(caller: Caller, endpoint: &EndpointState) -> bool {
    endpoint.owner == caller.owner || caller.is_broker_owner
}

/// The store takes no new work now.
pub(crate) fn not_put(what: &str, why: &PutError) -> Refusal {
    let (code, hint) = match why {
        PutError::Full(_) => {
            (Code::DiskFull, "free space where the broker's log is; results are still taken")
        }
        PutError::Busy(_) => (Code::Busy, "try again in a moment"),
    };
    Refusal::new(code, format!("{what}: {why}")).hint(hint)
}
