//! What is read back from the store: items of tasks that wait for long, and the items of a job that is tried again.

use crate::broker::{Broker, Turn};
use crate::commands::RetryPlan;
use crate::io::Effect;
use crate::items::Loaded;
use crate::limits::LOAD_PIECES_MAX;
use crate::outcomes::OwnEnd;
use crate::record::Piece;
use bytes::Bytes;
use pf_protocol::outcome::{OutcomeKind, Ran};
use pf_protocol::{BlobRef, EndpointId, JobId, Ranges};

/// For what blobs were asked.
#[derive(Debug)]
pub(crate) enum Load {
    /// To hand out tasks.
    Items { job: JobId, pieces: Vec<Piece> },
    /// To try a job again.
    Retry(Box<RetryPlan>),
}

impl Broker {
    pub(crate) fn start_load(&mut self, load: Load, blobs: Vec<BlobRef>, turn: &mut Turn<'_>) {
        self.last_load += 1;
        self.loads.insert(self.last_load, load);
        turn.out.push(Effect::Load { token: self.last_load, blobs });
    }

    /// Reads a piece of a large item for a relay, under the number of the last load.
    pub(crate) fn load_piece(&mut self, endpoint: EndpointId, blob: BlobRef, turn: &mut Turn<'_>) {
        self.piece_loads.insert(self.last_load, endpoint);
        turn.out.push(Effect::Load { token: self.last_load, blobs: vec![blob] });
    }

    /// Asks for the piece that holds `position` and the next few.
    pub(crate) fn load_items(&mut self, id: JobId, position: u32, turn: &mut Turn<'_>) {
        let (Some(live), Some(job)) = (self.jobs.get_mut(&id), self.state.jobs.get(&id)) else { return };
        let from = job.pieces.partition_point(|p| p.first + p.count <= position);
        let near = job.pieces.iter().skip(from).take(LOAD_PIECES_MAX);
        let pieces: Vec<Piece> = near.filter(|p| self.cache.get(id, p.first).is_none()).copied().collect();
        live.loading = true;
        let blobs = pieces.iter().map(|p| p.blob).collect();
        self.start_load(Load::Items { job: id, pieces }, blobs, turn);
    }

    pub(crate) fn on_loaded(&mut self, token: u64, result: Result<Vec<Bytes>, String>, turn: &mut Turn<'_>) {
        if let Some(endpoint) = self.piece_loads.remove(&token) {
            return self.piece_loaded(endpoint, token, result, turn);
        }
        match self.loads.remove(&token) {
            Some(Load::Items { job, pieces }) => self.items_loaded(job, &pieces, result, turn),
            Some(Load::Retry(plan)) => self.retry_loaded(*plan, result, turn),
            None => {}
        }
    }

    fn items_loaded(
        &mut self,
        id: JobId,
        pieces: &[Piece],
        result: Result<Vec<Bytes>, String>,
        turn: &mut Turn<'_>,
    ) {
        let Some(live) = self.jobs.get_mut(&id) else { return };
        live.loading = false;
        let read = result.and_then(|blobs| {
            let loaded = pieces.iter().zip(blobs).map(|(piece, bytes)| Loaded::read(bytes, piece.count));
            loaded.collect::<Option<Vec<Loaded>>>().ok_or_else(|| "lengths and bytes do not agree".into())
        });
        match read {
            // Inserted last to first, so that the one that is needed first is the last to make room.
            Ok(loaded) => pieces.iter().zip(loaded).rev().for_each(|(piece, loaded)| {
                self.cache.insert(id, piece.first, loaded);
            }),
            Err(why) => {
                let first = pieces.first().map(|p| Ranges::from_range(p.first, p.count)).unwrap_or_default();
                let mut tasks = self.state.missing(id).intersection(&first);
                tasks.subtract(&self.jobs.get(&id).map(|live| live.assigned_of(&tasks)).unwrap_or_default());
                let end = OwnEnd {
                    ran: Ran::No,
                    kind: OutcomeKind::Other,
                    message: format!("the task's arguments could not be read from the broker's disk: {why}"),
                    hint: "look at the disk that holds the broker's log, then `pf job retry`".into(),
                };
                self.end_by_broker(id, &tasks, &end, turn);
            }
        }
        self.refresh(id);
    }
}
