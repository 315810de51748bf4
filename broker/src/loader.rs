//! Reads blobs for the core on a thread that may wait for the disk. Owned by the node.

use crate::error::BrokerError;
use crate::node::{Inbox, Outside};
use bytes::Bytes;
use pf_protocol::BlobRef;
use pf_store::BlobReader;
use std::sync::Arc;
use std::sync::mpsc;

/// Ends with its owner: the thread sees the closed channel.
pub(crate) struct Loader {
    /// The core bounds what it has asked for and not got: one question for each relay.
    questions: mpsc::Sender<(u64, Vec<BlobRef>)>,
}

impl Loader {
    pub fn start(reader: BlobReader, inbox: Arc<Inbox>) -> Result<Loader, BrokerError> {
        let (questions, asked) = mpsc::channel::<(u64, Vec<BlobRef>)>();
        let run = move || {
            while let Ok((token, blobs)) = asked.recv() {
                inbox.put(Outside::Loaded { token, result: read_all(&reader, &blobs) });
            }
        };
        std::thread::Builder::new()
            .name("blob-loader".into())
            .spawn(run)
            .map_err(|source| BrokerError::System { action: "start a thread", source: Box::new(source) })?;
        Ok(Loader { questions })
    }

    pub fn load(&self, token: u64, blobs: Vec<BlobRef>) {
        // The thread lives as long as this sender.
        let _ = self.questions.send((token, blobs));
    }
}

fn read_all(reader: &BlobReader, blobs: &[BlobRef]) -> Result<Vec<Bytes>, String> {
    let read = |blob: &BlobRef| if blob.len == 0 { Ok(Vec::new()) } else { reader.read(*blob) };
    blobs.iter().map(|blob| read(blob).map(Bytes::from).map_err(|error| error.to_string())).collect()
}
