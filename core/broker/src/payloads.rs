//! Large payloads: put by clients in pieces, read for relays in pieces (items), pulled from relays in pieces (values). In memory is
//! never more than [`WANTS_MAX`] pieces a link (`docs/decisions/0007-large-payloads.md`).

use crate::broker::{Broker, Then, Turn};
use crate::commands::not_put;
use crate::io::{Class, PutError};
use crate::job::Large;
use crate::limits::{PULLS_REST, UPLOADS_MAX};
use crate::record::PayloadPut;
use crate::requests::{Caller, Code, Refusal, Reply, Tasks};
use bytes::Bytes;
use pf_protocol::limits::{PAYLOAD_BYTES_MAX, PIECE_BYTES, WANTS_MAX};
use pf_protocol::message::{Piece, Refuse, Want};
use pf_protocol::outcome::{ErrorDetail, Outcome, OutcomeKind};
use pf_protocol::payload::{PayloadHash, PayloadRef, is_large, refs};
use pf_protocol::{BlobRef, ContentHash, EndpointId, JobId, Micros};
use std::collections::{BTreeMap, BTreeSet};

/// What came of a payload so far.
#[derive(Debug, Default)]
pub(crate) struct Partial {
    at: u64,
    hash: PayloadHash,
    blobs: Vec<BlobRef>,
}

impl Partial {
    fn take(&mut self, bytes: &[u8], blob: BlobRef) {
        self.at += bytes.len() as u64;
        self.hash.update(bytes);
        self.blobs.push(blob);
    }
}

/// A payload that a client puts.
#[derive(Debug)]
pub(crate) struct Upload {
    payload: PayloadRef,
    partial: Partial,
    used: Micros,
}

/// An outcome whose value is pulled before it is recorded.
#[derive(Debug)]
pub(crate) struct Pull {
    /// Number of the message in which it came.
    number: u64,
    node: String,
    pub outcome: Outcome,
    payload: PayloadRef,
    partial: Partial,
    /// Where the next piece to be wanted begins.
    asked: u64,
    /// Why it will not come.
    fault: Option<String>,
}

impl Pull {
    fn key(&self) -> (JobId, ContentHash) {
        (self.outcome.job, self.payload.hash)
    }
}

/// A piece that a relay wants, and what was read if it was.
#[derive(Debug)]
pub(crate) struct Wanted {
    token: u64,
    want: Want,
    found: Option<Result<Bytes, String>>,
}

/// Length of the piece that begins at `offset`.
fn piece_len(len: u64, offset: u64) -> u64 {
    len.saturating_sub(offset).min(PIECE_BYTES as u64)
}

impl Broker {
    /// Takes a piece from a client. Any piece can be sent again from the start of its payload.
    pub(crate) fn put_piece(
        &mut self,
        caller: Caller,
        id: JobId,
        payload: PayloadRef,
        offset: u64,
        bytes: &[u8],
        turn: &mut Turn<'_>,
    ) -> Result<Reply, Refusal> {
        let job = self.own_job(caller, id)?;
        let PayloadRef { hash, len } = payload;
        if job.large.get(&hash).is_some_and(|large| large.len == len) {
            return Ok(Reply::PieceTaken { upto: len });
        }
        if len > PAYLOAD_BYTES_MAX as u64 {
            let message = format!("the payload has {len} bytes, {PAYLOAD_BYTES_MAX} are the limit");
            return Err(Refusal::new(Code::TooLarge, message).hint("write it to a file and pass the path"));
        }
        if PayloadRef::read(&payload.to_bytes()).is_none() || bytes.len() as u64 != piece_len(len, offset) {
            let message =
                format!("{} bytes at {offset} are no piece of a payload of {len} bytes", bytes.len());
            return Err(Refusal::new(Code::BadRequest, message));
        }
        if !job.open {
            let message = format!("job {id} takes no more tasks, so that none could name the payload");
            return Err(Refusal::new(Code::Conflict, message));
        }
        self.refuse_under_pressure()?;
        if offset == 0 {
            self.make_room_for_upload(id, hash);
            let upload = Upload { payload, partial: Partial::default(), used: turn.now };
            self.uploads.insert((id, hash), upload);
        }
        let key = (id, hash);
        let found = self.uploads.get_mut(&key).filter(|u| u.payload == payload && u.partial.at == offset);
        let upload = found.ok_or_else(|| {
            Refusal::new(Code::Conflict, format!("a piece at {offset} of payload {hash} is not the next one"))
                .hint("put the payload from its start again")
        })?;
        let blob = turn.blobs.put(id, Class::Ordinary, bytes).map_err(|why| not_put("the payload", &why))?;
        upload.partial.take(bytes, blob);
        upload.used = turn.now;
        let upto = upload.partial.at;
        if upto == len
            && let Some(upload) = self.uploads.remove(&key)
        {
            let found = self.payload_whole(id, payload, upload.partial, turn)?;
            if found != hash {
                return Err(Refusal::new(
                    Code::BadRequest,
                    format!("the payload's hash is {found}, not {hash}"),
                ));
            }
        }
        Ok(Reply::PieceTaken { upto })
    }

    fn make_room_for_upload(&mut self, job: JobId, hash: ContentHash) {
        if self.uploads.len() >= UPLOADS_MAX && !self.uploads.contains_key(&(job, hash)) {
            let oldest = self.uploads.iter().min_by_key(|(_, upload)| upload.used).map(|(key, _)| *key);
            oldest.and_then(|key| self.uploads.remove(&key));
        }
    }

    /// Records a payload if its hash is right; answers what it is.
    fn payload_whole(
        &mut self,
        job: JobId,
        payload: PayloadRef,
        partial: Partial,
        turn: &mut Turn<'_>,
    ) -> Result<ContentHash, Refusal> {
        let found = partial.hash.finish();
        if found == payload.hash {
            let (hash, len, blobs) = (found, payload.len, partial.blobs);
            self.log(PayloadPut { at_us: turn.at_us, job, hash, len, blobs }, turn)?;
        }
        Ok(found)
    }

    /// Where a payload lies, for its owner.
    pub(crate) fn payload(&self, caller: Caller, id: JobId, hash: ContentHash) -> Result<Reply, Refusal> {
        let large = self.own_job(caller, id)?.large.get(&hash);
        let found = large.map(|large| Reply::Payload { len: large.len, blobs: large.blobs.clone() });
        found.ok_or_else(|| {
            Refusal::new(Code::UnknownPayload, format!("job {id} has no large payload {hash}"))
        })
    }

    /// Those payloads of `job` that these tasks name.
    pub(crate) fn named_of(&self, job: JobId, tasks: &Tasks) -> BTreeMap<ContentHash, Large> {
        let Some(job) = self.state.jobs.get(&job) else { return BTreeMap::new() };
        let named = refs(&tasks.lens, &tasks.blob).unwrap_or_default();
        let known = named.iter().filter_map(|name| Some((name.hash, job.large.get(&name.hash)?.clone())));
        known.collect()
    }

    /// A relay wants a piece of an item.
    pub(crate) fn on_want(&mut self, conn: u64, endpoint: EndpointId, want: Want, turn: &mut Turn<'_>) {
        let Some(link) = self.endpoints.get_mut(&endpoint).and_then(|e| e.link.as_mut()) else { return };
        if link.wants.len() >= WANTS_MAX {
            let message = format!("it wants more than {WANTS_MAX} pieces at a time");
            return self.refuse_link(conn, Refuse { code: "unexpected".into(), message, retry: true }, turn);
        }
        // What is not this endpoint's is as if it were not there.
        let job = self.state.jobs.get(&want.job).filter(|job| job.endpoint == endpoint);
        let nth = usize::try_from(want.offset / PIECE_BYTES as u64).unwrap_or(usize::MAX);
        let aligned = want.offset.is_multiple_of(PIECE_BYTES as u64);
        let large = job.and_then(|job| job.large.get(&want.hash)).filter(|_| aligned);
        let blob = large.and_then(|large| large.blobs.get(nth)).copied();
        let fault = blob.is_none().then(|| Err("the broker has no such piece".into()));
        self.last_load += 1;
        link.wants.push_back(Wanted { token: self.last_load, want, found: fault });
        if let Some(blob) = blob {
            self.load_piece(endpoint, blob, turn);
        }
        self.send_pieces(endpoint, turn);
    }

    /// A piece is read. One that a session before wanted is wanted no more.
    pub(crate) fn piece_loaded(
        &mut self,
        endpoint: EndpointId,
        token: u64,
        result: Result<Vec<Bytes>, String>,
        turn: &mut Turn<'_>,
    ) {
        let Some(link) = self.endpoints.get_mut(&endpoint).and_then(|e| e.link.as_mut()) else { return };
        if let Some(wanted) = link.wants.iter_mut().find(|wanted| wanted.token == token) {
            let read = result.and_then(|mut blobs| blobs.pop().ok_or_else(|| "nothing was read".into()));
            wanted.found = Some(read);
            self.send_pieces(endpoint, turn);
        }
    }

    /// Sends what is read, in the order in which it was wanted: a relay takes pieces in order only.
    fn send_pieces(&mut self, endpoint: EndpointId, turn: &mut Turn<'_>) {
        while let Some(link) = self.endpoints.get_mut(&endpoint).and_then(|e| e.link.as_mut()) {
            if link.wants.front().is_none_or(|wanted| wanted.found.is_none()) {
                return;
            }
            let conn = link.conn;
            let Some(Wanted { want: Want { job, hash, offset }, found, .. }) = link.wants.pop_front() else {
                return;
            };
            let (bytes, fault) = match found.unwrap_or_else(|| Ok(Bytes::new())) {
                Ok(bytes) => (bytes, String::new()),
                Err(fault) => (Bytes::new(), fault),
            };
            self.send(conn, Piece { job, hash, offset, bytes, fault }.into(), turn);
        }
    }

    /// Whether the outcome's value must be pulled first. If so, it waits for that.
    pub(crate) fn must_be_pulled(
        &mut self,
        endpoint: EndpointId,
        number: u64,
        node: &str,
        outcome: &Outcome,
        value: &[u8],
    ) -> bool {
        if !is_large(outcome.value_len) {
            return false;
        }
        let Some(link) = self.endpoints.get_mut(&endpoint).and_then(|e| e.link.as_mut()) else {
            return false;
        };
        let (payload, fault) = match PayloadRef::read(value) {
            Some(payload) => (payload, None),
            None => {
                let nothing = PayloadRef { hash: ContentHash::default(), len: 0 };
                (nothing, Some("what stands in its place names no payload".into()))
            }
        };
        let (node, outcome, partial) = (node.into(), outcome.clone(), Partial::default());
        link.pulls.push_back(Pull { number, node, outcome, payload, partial, asked: 0, fault });
        true
    }

    /// A relay sends a piece of a value.
    pub(crate) fn on_piece(&mut self, conn: u64, endpoint: EndpointId, piece: Piece, turn: &mut Turn<'_>) {
        let Some(link) = self.endpoints.get_mut(&endpoint).and_then(|e| e.link.as_mut()) else { return };
        let Piece { job, hash, offset, bytes, fault } = piece;
        link.pieces_due = link.pieces_due.saturating_sub(1);
        let this =
            |pull: &&mut Pull| pull.key() == (job, hash) && pull.partial.at == offset && pull.asked > offset;
        // What was not wanted, or came twice, is not taken.
        let Some(pull) = link.pulls.iter_mut().find(this) else { return };
        if !fault.is_empty() {
            pull.fault = Some(fault);
        } else if bytes.len() as u64 != piece_len(pull.payload.len, offset) {
            pull.fault = Some(format!("a piece of {} bytes came, which is not its length", bytes.len()));
        } else if !self.jobs.contains_key(&job) {
            pull.fault = Some("its job is over".into());
        } else {
            match turn.blobs.put(job, Class::Outcome, &bytes) {
                Ok(blob) => pull.partial.take(&bytes, blob),
                Err(_) => {
                    // The disk is behind, or full: what is under way is wanted again after a rest.
                    link.pulls.iter_mut().for_each(|pull| pull.asked = pull.partial.at);
                    self.pulls_rest.insert(endpoint, turn.now + PULLS_REST);
                    return;
                }
            }
        }
        self.pull(conn, endpoint, turn);
    }

    /// Pulls that rested go on.
    pub(crate) fn pulls_go_on(&mut self, turn: &mut Turn<'_>) {
        let due: Vec<EndpointId> = self
            .pulls_rest
            .iter()
            .filter(|(_, at)| **at <= turn.now)
            .map(|(endpoint, _)| *endpoint)
            .collect();
        for endpoint in due {
            self.pulls_rest.remove(&endpoint);
            let link = self.endpoints.get(&endpoint).and_then(|e| e.link.as_ref());
            if let Some(conn) = link.map(|link| link.conn) {
                self.pull(conn, endpoint, turn);
            }
        }
    }

    /// Records what has its value now, in order; wants more; confirms what is recorded.
    pub(crate) fn pull(&mut self, conn: u64, endpoint: EndpointId, turn: &mut Turn<'_>) {
        while let Some(pull) = self.next_pulled(endpoint) {
            if let Err(why) = self.record_pulled(endpoint, pull, turn) {
                return self.outcomes_refused(conn, &why, turn);
            }
        }
        self.want_more(conn, endpoint, turn);
        let Some(link) = self.endpoints.get_mut(&endpoint).and_then(|e| e.link.as_mut()) else { return };
        let upto = link.pulls.front().map_or(link.taken_upto, |pull| pull.number - 1);
        if upto > link.confirmed_upto {
            link.confirmed_upto = upto;
            self.after_sync(Then::Confirm { conn, upto }, turn);
        }
    }

    /// The first of the outcomes that wait, if there is nothing more to wait for.
    fn next_pulled(&mut self, endpoint: EndpointId) -> Option<Pull> {
        let link = self.endpoints.get_mut(&endpoint)?.link.as_mut()?;
        let pull = link.pulls.front()?;
        let job = self.state.jobs.get(&pull.outcome.job).filter(|job| job.endpoint == endpoint);
        let is_wanted = job.is_some_and(|job| {
            !job.ended.contains(pull.outcome.index) && !job.large.contains_key(&pull.payload.hash)
        });
        let is_whole = pull.partial.at == pull.payload.len;
        if is_wanted && !is_whole && pull.fault.is_none() { None } else { link.pulls.pop_front() }
    }

    fn record_pulled(&mut self, endpoint: EndpointId, pull: Pull, turn: &mut Turn<'_>) -> Result<(), String> {
        let Pull { node, mut outcome, payload, partial, mut fault, .. } = pull;
        let live = self.state.jobs.get(&outcome.job).filter(|job| job.endpoint == endpoint);
        let Some(job) = live.filter(|job| outcome.index < job.total && !job.ended.contains(outcome.index))
        else {
            return Ok(());
        };
        if fault.is_none() && job.large.get(&payload.hash).is_none_or(|large| large.len != payload.len) {
            match self.payload_whole(outcome.job, payload, partial, turn) {
                Ok(found) if found == payload.hash => {}
                Ok(found) => fault = Some(format!("its hash is {found}, {} was told", payload.hash)),
                Err(why) => return Err(why.message),
            }
        }
        let mut value = Bytes::copy_from_slice(&payload.to_bytes());
        if let Some(fault) = fault {
            outcome.kind = OutcomeKind::Other;
            (outcome.value_len, value) = (0, Bytes::new());
            outcome.error = Some(Box::new(ErrorDetail {
                message: format!("its result of {} bytes did not arrive: {fault}", payload.len),
                hint: Some(
                    "look at the disk that holds the endpoint's blocks, then `pf job retry --failed`".into(),
                ),
                ..ErrorDetail::default()
            }));
        }
        self.record_one(endpoint, &node, &outcome, value, turn)
    }

    /// Wants pieces in the order of the outcomes, as many as may be under way.
    fn want_more(&mut self, conn: u64, endpoint: EndpointId, turn: &mut Turn<'_>) {
        if matches!(self.pressure, Some(PutError::Busy(_))) {
            // What waits for the disk is in memory: it may use that up to its end, but values need not fill it.
            self.pulls_rest.entry(endpoint).or_insert(turn.now + PULLS_REST);
        }
        if self.pulls_rest.contains_key(&endpoint) {
            return;
        }
        let Some(link) = self.endpoints.get_mut(&endpoint).and_then(|e| e.link.as_mut()) else { return };
        let mut wants = Vec::new();
        let mut seen = BTreeSet::new();
        for pull in &mut link.pulls {
            if link.pieces_due >= WANTS_MAX {
                break;
            }
            // An equal payload comes with the first that names it.
            if pull.fault.is_some() || !seen.insert(pull.key()) {
                continue;
            }
            while link.pieces_due < WANTS_MAX && pull.asked < pull.payload.len {
                wants.push(Want { job: pull.outcome.job, hash: pull.payload.hash, offset: pull.asked });
                pull.asked = (pull.asked + PIECE_BYTES as u64).min(pull.payload.len);
                link.pieces_due += 1;
            }
        }
        for want in wants {
            self.send(conn, want.into(), turn);
        }
    }
}
