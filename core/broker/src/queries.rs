//! What clients ask to know. Rows are made here; whatever lies in payloads is left to whoever reads those.

use crate::broker::{Broker, Turn};
use crate::commands::may_use;
use crate::io::PutError;
use crate::job::{ErrorKey, Errors, Job};
use crate::limits::{JOBS_PAGE_MAX, TASKS_PAGE_MAX};
use crate::requests::{Caller, Code, JobsFilter, Refusal, Reply, Request, TaskView, TokenRow};
use pf_protocol::api::{Counts, EndpointRow, ErrorGroup, FunctionRow, JobState, JobSummary, TaskRow};
use pf_protocol::job::Body;
use pf_protocol::message::AskWhat;
use pf_protocol::outcome::OutcomeKind;
use pf_protocol::payload::{held, is_large};
use pf_protocol::report::BlockState;
use pf_protocol::{BlobRef, EndpointId, FunctionId, JobId, TaskId};

impl Broker {
    pub(crate) fn query(&mut self, ticket: u64, caller: Caller, request: Request, turn: &mut Turn<'_>) {
        let reply = match request {
            Request::Job { job, wait_until } => match self.own_job(caller, job) {
                Err(refusal) => Err(refusal),
                Ok(found) => {
                    if let Some(until) = wait_until.filter(|until| *until > turn.now && !found.is_over()) {
                        return self.waiters.add(job, ticket, until);
                    }
                    self.job_reply(job)
                }
            },
            Request::Jobs(filter) => Ok(Reply::Jobs(self.jobs_page(caller, &filter))),
            Request::Tasks { job, state, from, limit } => {
                self.tasks_page(caller, job, state.as_deref(), from, limit).map(Reply::Tasks)
            }
            Request::Task { job, label } => self
                .position_of(caller, job, label)
                .map(|at| Reply::Tasks(self.task_view(job, at).into_iter().collect())),
            Request::Explain { job } => match self.explain(caller, job) {
                Err(refusal) => Err(refusal),
                Ok((lines, None)) => Ok(Reply::Lines(lines)),
                Ok((lines, Some(endpoint))) => {
                    return self.ask(ticket, endpoint, AskWhat::ExplainJob { job }, Some(lines), turn);
                }
            },
            Request::Log { job, label, from } => match self.log_question(caller, job, label, from) {
                Err(refusal) => Err(refusal),
                Ok((endpoint, what)) => return self.ask(ticket, endpoint, what, None, turn),
            },
            Request::Subscribe { subscription, of, after, follow } => {
                self.subscribe(caller, subscription, of, after, follow)
            }
            Request::Functions => {
                let mine = self.state.functions.iter().filter(|(_, f)| f.owners.contains(&caller.owner));
                let ids: Vec<FunctionId> = mine.map(|(id, _)| *id).collect();
                let rows: Result<Vec<_>, _> =
                    ids.into_iter().map(|id| self.function_row(caller, id)).collect();
                rows.map(Reply::Functions)
            }
            Request::Function { id } => self.function_row(caller, id).and_then(|_| {
                let found = self.state.functions.get(&id).map(|f| Reply::FunctionBytes(f.function()));
                found.ok_or_else(|| unknown_function(id))
            }),
            Request::Endpoints => {
                let usable = self.state.endpoints.iter().filter(|(_, endpoint)| may_use(caller, endpoint));
                let rows: Result<Vec<_>, _> = usable.map(|(id, _)| self.endpoint_row(*id)).collect();
                rows.map(Reply::Endpoints)
            }
            Request::Endpoint { name } => self
                .own_endpoint(caller, &name)
                .and_then(|id| self.endpoint_row(id))
                .map(|row| Reply::Endpoint(Box::new(row))),
            Request::Tokens => {
                let mine = self.state.tokens.iter().filter(|((owner, _), _)| *owner == caller.owner);
                let rows = mine
                    .map(|((_, name), token)| TokenRow { name: name.clone(), made_ms: token.at_us / 1_000 });
                Ok(Reply::Tokens(rows.collect()))
            }
            Request::Totals => Ok(Reply::Totals {
                active_jobs: self.jobs.len() as u64,
                unfinished_tasks: self
                    .jobs
                    .keys()
                    .filter_map(|id| self.state.jobs.get(id))
                    .map(Job::unfinished)
                    .sum(),
                refusing: self.pressure.as_ref().map(PutError::to_string),
            }),
            other => Err(Refusal::new(Code::Internal, format!("{other:?} is no query"))),
        };
        self.reply(ticket, reply, turn);
    }

    pub(crate) fn position_of(&self, caller: Caller, id: JobId, label: u64) -> Result<u32, Refusal> {
        let job = self.own_job(caller, id)?;
        let position = job.spec.array.position(label).filter(|at| *at < job.total);
        position.ok_or_else(|| {
            let hint = match job.total.checked_sub(1) {
                None => "it has no tasks yet".into(),
                Some(last) => {
                    format!(
                        "its labels go from {} to {}",
                        job.spec.array.label(0),
                        job.spec.array.label(last)
                    )
                }
            };
            Refusal::new(Code::UnknownTask, format!("job {id} has no task {label}")).hint(hint)
        })
    }

    fn log_question(
        &self,
        caller: Caller,
        job: JobId,
        label: u64,
        from: u64,
    ) -> Result<(EndpointId, AskWhat), Refusal> {
        let index = self.position_of(caller, job, label)?;
        let endpoint = self.own_job(caller, job)?.endpoint;
        Ok((endpoint, AskWhat::ReadLog { task: TaskId { job, index }, from }))
    }

    pub(crate) fn job_reply(&self, id: JobId) -> Result<Reply, Refusal> {
        let Some(job) = self.state.jobs.get(&id) else {
            return Err(Refusal::new(Code::UnknownJob, format!("job {id} was forgotten")));
        };
        let mut summary = self.summary(job);
        let mut groups: Vec<ErrorGroup> =
            job.errors.iter().map(|(key, errors)| self.error_group(job, key, errors)).collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        summary.errors = groups;
        let mut spec = job.spec.clone();
        spec.env.vars.values_mut().for_each(|value| "***".clone_into(value));
        summary.spec = Some(spec);
        Ok(Reply::Job(Box::new(summary)))
    }

    fn error_group(&self, job: &Job, key: &ErrorKey, errors: &Errors) -> ErrorGroup {
        let nodes = errors.nodes.iter().filter(|(node, _)| **node > 0);
        ErrorGroup {
            kind: key.kind.name().into(),
            message: key.line.clone(),
            exit: key.exit,
            signal: key.signal,
            count: errors.count,
            nodes: nodes.map(|(node, count)| (self.state.node_name(*node).into(), *count)).collect(),
            examples: errors.examples.iter().map(|index| job.spec.array.label(*index)).collect(),
        }
    }

    fn jobs_page(&self, caller: Caller, filter: &JobsFilter) -> Vec<JobSummary> {
        let limit = match filter.limit as usize {
            0 => JOBS_PAGE_MAX,
            some => some.min(JOBS_PAGE_MAX),
        };
        let mine = self.state.jobs.values().rev().filter(|job| job.owner == caller.owner);
        let named = mine.filter(|job| filter.name.is_none() || job.spec.name == filter.name);
        let labelled = named
            .filter(|job| filter.labels.iter().all(|(key, value)| job.spec.labels.get(key) == Some(value)));
        let in_state = labelled.filter(|job| filter.state.is_none_or(|state| self.job_state(job) == state));
        in_state.take(limit).map(|job| self.summary(job)).collect()
    }

    fn job_state(&self, job: &Job) -> JobState {
        match job.state() {
            JobState::Active if self.jobs.get(&job.id).is_some_and(|live| live.waiting) => JobState::Waiting,
            state => state,
        }
    }

    /// The job in a few lines, without errors and spec.
    pub(crate) fn summary(&self, job: &Job) -> JobSummary {
        let live = self.jobs.get(&job.id);
        let running = live.map_or(0, |live| live.running.len() as u64);
        let reason = match job.cancel.reason.as_str() {
            "" if job.ended_us.is_none() => self.why_stuck(job.endpoint),
            "" => None,
            reason => Some(reason.into()),
        };
        JobSummary {
            job: job.id,
            key: job.key.to_string(),
            name: job.spec.name.clone(),
            labels: job.spec.labels.clone(),
            owner: self.owner_name(job.owner),
            endpoint: self.endpoint_name(job.endpoint),
            what: self.what(job),
            state: self.job_state(job),
            reason,
            open: job.open,
            counts: Counts {
                total: job.total.into(),
                queued: live.map_or(0, |live| live.waiting_count()),
                assigned: live.map_or(0, |live| live.assigned.saturating_sub(running)),
                running,
                ok: job.ok,
                failed: job.failed,
                cancelled: job.cancelled,
            },
            submitted_ms: job.submitted_us / 1_000,
            ended_ms: job.ended_us.map(|us| us / 1_000),
            times: job.times,
            errors: Vec::new(),
            spec: None,
        }
    }

    /// Why an endpoint cannot be served here, if it is not served from elsewhere.
    fn why_broken(&self, endpoint: EndpointId) -> Option<&String> {
        let served = self.endpoints.get(&endpoint).is_some_and(|live| live.link.is_some());
        if served { None } else { self.broken.get(&self.endpoint_name(endpoint)) }
    }

    /// That an endpoint asks for no more blocks, or that its first ones are kept waiting by the scheduler, for those whose tasks wait there.
    fn why_stuck(&self, endpoint: EndpointId) -> Option<String> {
        let name = self.endpoint_name(endpoint);
        if let Some(why) = self.why_broken(endpoint) {
            return Some(format!("endpoint {name} is broken: {why}"));
        }
        let live = self.endpoints.get(&endpoint)?;
        if live.link.is_none() && self.state.endpoints.get(&endpoint).is_some_and(|e| e.ended) {
            return Some(format!(
                "endpoint {name} is stopped; `pf endpoint start {name}` lets it take tasks"
            ));
        }
        let report = live.report.as_ref()?;
        if let Some(why) = &report.paused {
            return Some(format!(
                "endpoint {name} is paused: {why}; `pf endpoint resume {name}` when that is mended"
            ));
        }
        if !report.managers.is_empty() {
            return None;
        }
        // Without a word of the scheduler it has only just been submitted.
        let kept = report.blocks.iter().find_map(|b| match &b.state {
            BlockState::Queued(why) if !why.is_empty() => Some((b.block, "queued", why)),
            BlockState::Held(why) => Some((b.block, "held", why)),
            _ => None,
        });
        kept.map(|(block, how, why)| format!("block {block} of endpoint {name} is {how}: {why}"))
    }

    fn owner_name(&self, owner: pf_protocol::OwnerId) -> String {
        if owner.0 == 1 { self.config.owner_name.clone() } else { owner.to_string() }
    }

    fn what(&self, job: &Job) -> String {
        match &job.spec.body {
            Body::Command(command) => {
                let line = command.argv.join(" ");
                let short: String = line.chars().take(60).collect();
                if short.len() < line.len() { format!("{short}…") } else { short }
            }
            Body::Python(python) => match self.state.functions.get(&python.function) {
                Some(function) => format!("{}()", function.name),
                None => format!("function {}", python.function),
            },
        }
    }

    fn tasks_page(
        &self,
        caller: Caller,
        id: JobId,
        state: Option<&str>,
        from: u32,
        limit: u32,
    ) -> Result<Vec<TaskView>, Refusal> {
        let job = self.own_job(caller, id)?;
        let known = ["queued", "assigned", "running", "ended", "failed"];
        let is_kind = |word: &str| OutcomeKind::ALL.iter().any(|kind| kind.name() == word);
        if let Some(word) = state.filter(|word| !known.contains(word) && !is_kind(word)) {
            let kinds: Vec<&str> = known.into_iter().chain(OutcomeKind::ALL.map(OutcomeKind::name)).collect();
            let refusal = Refusal::new(Code::BadRequest, format!("there is no task state {word:?}"));
            return Err(refusal.hint(format!("states are {}", kinds.join(", "))));
        }
        let limit = if limit == 0 { TASKS_PAGE_MAX } else { TASKS_PAGE_MAX.min(limit as usize) };
        let wanted = |index: &u32| {
            let word = self.task_state(job, *index);
            let ended = job.ended.contains(*index);
            state.is_none_or(|state| match state {
                "ended" => ended,
                "failed" => {
                    ended && word != OutcomeKind::Value.name() && word != OutcomeKind::Cancelled.name()
                }
                state => state == word,
            })
        };
        let chosen = (from..job.total).filter(wanted).take(limit);
        Ok(chosen.filter_map(|index| self.task_view(id, index)).collect())
    }

    fn task_state(&self, job: &Job, index: u32) -> &'static str {
        if let Some(row) = job.ended.row_number(index).and_then(|row| job.ended.row(row)) {
            return row.kind.name();
        }
        match self.jobs.get(&job.id) {
            Some(live) if live.running.contains_key(&index) => "running",
            Some(live) if live.is_assigned(index) => "assigned",
            _ => "queued",
        }
    }

    pub(crate) fn task_view(&self, id: JobId, index: u32) -> Option<TaskView> {
        let job = self.state.jobs.get(&id)?;
        let label = job.spec.array.label(index);
        let history = job.history.get(&index).copied().unwrap_or_default();
        let run = self.jobs.get(&id).and_then(|live| live.running.get(&index));
        let node = match run {
            Some(run) => run.node.clone(),
            None => self.state.node_name(history.node).into(),
        };
        let mut view = TaskView {
            row: TaskRow {
                task: format!("{id}.{label}"),
                index,
                label,
                state: self.task_state(job, index).into(),
                node: Some(node),
                attempts_before: history.attempts(),
                ran_us: None,
                held_us: None,
                exit: None,
                signal: None,
                message: None,
                traceback: None,
                stderr_tail: None,
                max_rss_kib: None,
            },
            value: None,
            is_large: false,
            detail: None,
        };
        if let Some(number) = job.ended.row_number(index)
            && let (Some(row), Some((chunk, offset))) = (job.ended.row(number), job.ended.chunk_of(number))
        {
            view.row.node = Some(self.state.node_name(chunk.node).into());
            view.row.ran_us = Some(row.ran_us.into());
            view.row.held_us = Some(row.held_us.into());
            let empty = BlobRef::default();
            view.value = Some(if row.value_len == 0 {
                empty
            } else {
                chunk.value(offset, held(row.value_len) as u32)
            });
            view.is_large = is_large(row.value_len);
            view.detail = chunk.details().map(|blob| (blob, number - chunk.first_row));
            if row.kind == OutcomeKind::Cancelled && view.detail.is_none() {
                view.row.message = Some(job.cancel.reason.clone());
            }
        }
        view.row.node = view.row.node.filter(|node| !node.is_empty());
        Some(view)
    }

    pub(crate) fn function_row(&self, caller: Caller, id: FunctionId) -> Result<FunctionRow, Refusal> {
        let found = self.state.functions.get(&id).filter(|f| f.owners.contains(&caller.owner));
        let function = found.ok_or_else(|| unknown_function(id))?;
        Ok(FunctionRow {
            function: id,
            kind: function.kind,
            name: function.name.clone(),
            size_bytes: function.bytes.len() as u64,
            registered_ms: function.at_us / 1_000,
        })
    }

    pub(crate) fn endpoint_row(&self, id: EndpointId) -> Result<EndpointRow, Refusal> {
        let unknown = || Refusal::new(Code::UnknownEndpoint, format!("there is no endpoint {id}"));
        let endpoint = self.state.endpoints.get(&id).ok_or_else(unknown)?;
        let live = self.endpoints.get(&id).ok_or_else(unknown)?;
        let jobs = live.jobs.iter().filter_map(|job| self.jobs.get(job));
        let (queued, assigned) = jobs
            .fold((0, 0), |(queued, assigned), job| (queued + job.waiting_count(), assigned + job.assigned));
        let broken = self.why_broken(id).cloned();
        let state = match &live.link {
            Some(_) => "connected",
            None if broken.is_some() => "broken",
            None if endpoint.ended => "stopped",
            None => "absent",
        };
        Ok(EndpointRow {
            name: endpoint.name.clone(),
            owner: self.owner_name(endpoint.owner),
            state: state.into(),
            broken,
            queued,
            assigned,
            report: live.report.clone(),
        })
    }
}

fn unknown_function(id: FunctionId) -> Refusal {
    Refusal::new(Code::UnknownFunction, format!("there is no function {id}"))
        .hint("`pf function list` shows yours")
}
