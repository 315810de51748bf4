//! The broker, its disk, and the client that asks it.

use super::*;

/// What all Python jobs call.
fn function() -> Function {
    Function { kind: FunctionKind::Reference, bytes: b"work:work".to_vec(), name: "work".into() }
}

impl World {
    pub(super) fn start_broker(&mut self) {
        if self.broker.is_some() {
            return;
        }
        let mut recovery = broker::Recovery::new();
        for (head, bytes) in self.disk.records() {
            recovery.record(*head, bytes).expect("the log replays");
        }
        self.broker_life += 1;
        self.syncing = false;
        self.broker = Some(recovery.finish(broker::Config {
            seed: self.rng.any(),
            timing: Timing::default(),
            owner_name: "user".into(),
            now: self.now,
            wall_us: 1_700_000_000_000_000 + self.now,
        }));
        self.subscribed = false;
        let position = self.disk.synced() as u64;
        self.tell_broker(broker::Input::Synced { position });
        self.ask(900_000, broker::Request::PutEndpoint { name: "local".into(), relay_key: None });
        if self.plan.has_large {
            let function = function();
            self.ask(900_001, broker::Request::PutFunction { id: function.id(), function });
        }
        self.putting.clear();
        self.at(self.now + MS, Event::RelayDials);
        self.at(self.now + MS, Event::ClientActs);
    }

    pub(super) fn ask(&mut self, ticket: u64, request: broker::Request) {
        let caller = broker::Caller { owner: OwnerId(1), is_broker_owner: true };
        self.tell_broker(broker::Input::Request { ticket, caller, request });
    }

    pub(super) fn tell_broker(&mut self, input: broker::Input) {
        let Some(mut core) = self.broker.take() else { return };
        let mut out = Vec::new();
        core.handle(self.now, input, &mut self.disk, &mut out);
        self.broker = Some(core);
        for effect in out {
            self.broker_effect(effect);
        }
        self.begin_sync();
    }

    pub(super) fn broker_effect(&mut self, effect: broker::Effect) {
        match effect {
            broker::Effect::Append { kind, version, critical, bytes, .. } => {
                self.log.extend_from_slice(&self.now.to_le_bytes());
                self.log.extend_from_slice(&bytes);
                self.disk.append(kind, version, critical, bytes);
            }
            broker::Effect::Reply { ticket, reply } => self.client_hears(ticket, reply),
            broker::Effect::Stream { batch, .. } => self.client_reads(&batch),
            broker::Effect::Frame { conn, bytes } => self.send(Party::Broker, conn, bytes),
            broker::Effect::CloseConn { conn } => self.close(Party::Broker, conn),
            broker::Effect::SetTimer { at } => {
                self.broker_armed = Some(at.max(self.now));
                self.at(at, Event::Timer { party: Party::Broker, at: at.max(self.now) });
            }
            broker::Effect::Load { token, blobs } => {
                let at = self.now + self.rng.between(100, 5 * MS);
                self.at(at, Event::Loaded { life: self.broker_life, token, blobs });
            }
            broker::Effect::DropJob { .. } => {}
        }
    }

    pub(super) fn begin_sync(&mut self) {
        let position = self.disk.appended();
        if !self.syncing && position > self.disk.synced() {
            self.syncing = true;
            let slow = if self.rng.chance(10_000) { 500 * MS } else { 3 * MS };
            let at = self.now + self.rng.between(200, slow);
            self.at(at, Event::Synced { life: self.broker_life, position });
        }
    }

    pub(super) fn client_acts(&mut self) {
        if self.broker.is_none() {
            return;
        }
        let under_way = &self.putting;
        let open: Vec<u64> =
            self.pending_submits.keys().filter(|n| !under_way.contains_key(n)).copied().collect();
        for n in open {
            let accounts = &self.plan.accounts;
            let account = (!accounts.is_empty()).then(|| accounts[n as usize % accounts.len()].to_owned());
            let spec = JobSpec {
                group: GROUP,
                account,
                endpoints: vec!["local".into()],
                name: Some(n.to_string()),
                body: self.body(n),
                ..JobSpec::default()
            };
            let mut key = [0u8; 16];
            key[..8].copy_from_slice(&n.to_le_bytes());
            let mut tasks = broker::Tasks { count: self.plan.tasks, ..broker::Tasks::default() };
            if self.plan.has_large {
                // Put one by one, before the tasks are appended.
                tasks.count = 0;
            } else if self.has_items(n) {
                let items: Vec<Vec<u8>> = (0..tasks.count).map(|index| self.item_of(n, index)).collect();
                tasks.lens = items.iter().map(|item| item.len() as u32).collect();
                tasks.blob = items.concat().into();
            }
            let request = broker::Request::Submit {
                key: JobKey(key),
                hash: content_hash(&key),
                spec: Box::new(spec),
                tasks,
                open: self.plan.has_large,
            };
            self.ask(n, request);
        }
        if !self.subscribed && self.broker.is_some() {
            self.subscribed = true;
            let request = broker::Request::Subscribe {
                subscription: 1,
                of: broker::StreamOf::Group(GROUP),
                after: self.client_cursor,
                follow: true,
            };
            self.ask(800_000, request);
        }
    }

    pub(super) fn client_hears(&mut self, ticket: u64, reply: Result<broker::Reply, broker::Refusal>) {
        match reply {
            Ok(broker::Reply::Submitted(reply)) if self.plan.has_large => {
                self.numbers.insert(reply.job, ticket);
                self.put_next(ticket, reply.job, 0);
            }
            Ok(broker::Reply::PieceTaken { upto }) => self.piece_taken(ticket - payloads::PUT, upto),
            Ok(broker::Reply::Appended(reply)) => self.appended(ticket, reply.tasks),
            Ok(broker::Reply::Payload { len, blobs }) => self.payload_found(len, &blobs),
            Ok(broker::Reply::Submitted(reply)) => {
                if let Some(before) = self.truth.acknowledged.insert(reply.job, reply.tasks) {
                    assert_eq!(before, reply.tasks, "{} changed its size", reply.job);
                }
                self.pending_submits.remove(&ticket);
            }
            Ok(broker::Reply::Subscribed { .. }) => self.tell_broker(broker::Input::Pull { subscription: 1 }),
            Ok(_) => {}
            Err(refusal) => panic!("the broker refused: {refusal:?}"),
        }
    }

    pub(super) fn client_reads(&mut self, batch: &broker::StreamBatch) {
        assert!(
            batch.seq >= self.client_cursor,
            "the stream went back: {} after {}",
            batch.seq,
            self.client_cursor
        );
        for part in &batch.parts {
            let values = match part.values.len {
                0 => Bytes::new(),
                _ => self.disk.read(part.values).expect("values that are told are on disk"),
            };
            for (row, value) in part.rows_with_values(&values).expect("values and lengths agree") {
                let task = TaskId { job: part.job, index: row.index };
                self.truth.told(task, row.kind);
                assert_eq!(row.kind, self.expected(task), "{task} ended otherwise than it ran");
                if row.kind.is_ok() {
                    self.check_value(task, &value, row.value_len);
                }
            }
        }
        self.client_cursor = batch.seq;
        self.tell_broker(broker::Input::Pull { subscription: 1 });
    }

    fn body(&self, number: u64) -> Body {
        if self.is_python(number) {
            return Body::Python(Python { function: function().id(), ..Python::default() });
        }
        let argv = vec![format!("work-{number}")];
        Body::Command(Command { argv, item_on_stdin: self.plan.has_large, ..Command::default() })
    }

    /// How a task ends, known beforehand.
    pub(super) fn expected(&self, task: TaskId) -> OutcomeKind {
        let chance = Rng::new(self.plan.seed ^ (task.job.0 << 32) ^ u64::from(task.index)).below(1_000_000);
        if chance < self.plan.failing_ppm { OutcomeKind::Exit } else { OutcomeKind::Value }
    }
}
