//! The records of the log: types of their own, kept apart from messages so that either can change without the other. Made by
//! commands, read back in replay; `tests/golden.rs` pins the bytes of each.
//!
//! Form: named maps (`rmp_serde::to_vec_named`), with rows packed as [`Row`]. A field may be added with a default without a new
//! version; a change of meaning raises the version; a new kind gets a new number, critical unless an older broker may ignore it.

use crate::ended::Row;
use pf_protocol::job::{FunctionKind, JobSpec};
use pf_protocol::outcome::OutcomeKind;
use pf_protocol::{
    AttemptId, BlobRef, ContentHash, EndpointId, Epoch, FunctionId, JobId, JobKey, OwnerId, Ranges,
};
use serde::{Deserialize, Serialize};

/// A stored run of items: `[len u32 LE × count][items]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Piece {
    /// Position of the first task.
    pub first: u32,
    /// Tasks.
    pub count: u32,
    /// Where it lies.
    pub blob: BlobRef,
}

/// A job was accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobSubmitted {
    pub at_us: u64,
    pub job: JobId,
    pub key: JobKey,
    pub hash: ContentHash,
    pub owner: OwnerId,
    pub endpoint: EndpointId,
    pub spec: JobSpec,
    pub count: u32,
    pub open: bool,
    pub pieces: Vec<Piece>,
}

impl Default for JobSubmitted {
    fn default() -> Self {
        JobSubmitted {
            at_us: 0,
            job: JobId(0),
            key: JobKey::default(),
            hash: ContentHash::default(),
            owner: OwnerId(0),
            endpoint: EndpointId(0),
            spec: JobSpec::default(),
            count: 0,
            open: false,
            pieces: Vec::new(),
        }
    }
}

/// Tasks were appended to an open job.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TasksAppended {
    pub at_us: u64,
    pub job: JobId,
    pub first: u32,
    pub count: u32,
    pub pieces: Vec<Piece>,
}

/// A job takes no more tasks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobClosed {
    pub at_us: u64,
    pub job: JobId,
}

/// Tasks ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TasksEnded {
    pub at_us: u64,
    pub parts: Vec<EndedPart>,
}

/// Tasks of one job that ended on one node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndedPart {
    pub job: JobId,
    pub node: String,
    /// Packed [`Row`]s.
    #[serde(with = "rows")]
    pub rows: Vec<Row>,
    /// Values, then details; `len` 0: neither.
    pub blob: BlobRef,
    pub values_len: u32,
    /// What groups errors; of rows that are not values.
    pub failures: Vec<Failure>,
    /// Sums over those rows whose times are known.
    pub queued_us: u64,
    pub transferred_us: u64,
    pub timed: u64,
}

/// What groups errors.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// Which row, from 0.
    pub nth: u32,
    /// First line of the message.
    pub line: String,
    pub exit: Option<i32>,
    pub signal: Option<i32>,
}

/// Attempts ended without ending their tasks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AttemptsFailed {
    pub at_us: u64,
    pub attempts: Vec<FailedAttempt>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FailedAttempt {
    pub job: JobId,
    pub index: u32,
    pub attempt: AttemptId,
    pub node: String,
    pub kind: OutcomeKind,
    /// What it counts as.
    pub count: CountAs,
    pub line: String,
}

/// What a failed attempt counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CountAs {
    /// The task's own failure: against `max_attempts`.
    #[default]
    Failure,
    /// The manager was lost under it: the task is a suspect.
    Loss,
    /// Lost for a reason that is not the task's (walltime, preemption).
    Innocent,
}

/// A cancel, by a person or by policy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Cancelled {
    pub at_us: u64,
    pub job: JobId,
    /// Tasks that end by this record.
    pub ended: Ranges,
    /// Those of them that had been handed out: they may still run.
    pub may_run: Ranges,
    /// Tasks that were handed out and are to end.
    pub asked: Ranges,
    /// Whether the whole job is cancelled: it takes no more.
    pub whole: bool,
    /// Whether what runs is killed.
    pub kill: bool,
    /// Why, for people.
    pub reason: String,
}

/// A job and its results are dropped.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobForgotten {
    pub at_us: u64,
    pub job: JobId,
    /// By its retention, not by a person.
    pub expired: bool,
}

/// A function was registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionPut {
    pub at_us: u64,
    pub owner: OwnerId,
    pub function: FunctionId,
    pub kind: FunctionKind,
    pub name: String,
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// An endpoint was made known, or its relay's key changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointPut {
    pub at_us: u64,
    pub endpoint: EndpointId,
    pub name: String,
    pub owner: OwnerId,
    pub relay_key: Option<ContentHash>,
}

/// An endpoint was removed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointRemoved {
    pub at_us: u64,
    pub endpoint: EndpointId,
}

/// A relay's process was given its endpoint's epoch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EpochGranted {
    pub at_us: u64,
    pub endpoint: EndpointId,
    pub epoch: Epoch,
    pub incarnation: u64,
    pub host: String,
    pub pid: u32,
}

/// A relay ended for good: nothing of its endpoint is held anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RelayEnded {
    pub at_us: u64,
    pub endpoint: EndpointId,
    pub epoch: Epoch,
}

/// A token was made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenAdded {
    pub at_us: u64,
    pub owner: OwnerId,
    pub name: String,
    pub hash: ContentHash,
}

/// A token was revoked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenRevoked {
    pub at_us: u64,
    pub owner: OwnerId,
    pub name: String,
}

/// Tasks of a job that must not run twice were handed out: from now on they may have started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TasksHanded {
    pub at_us: u64,
    pub job: JobId,
    pub tasks: Ranges,
}

/// A large payload of a job is whole: its tasks and outcomes may name it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PayloadPut {
    pub at_us: u64,
    pub job: JobId,
    pub hash: ContentHash,
    pub len: u64,
    /// Its pieces, each of `PIECE_BYTES` but the last.
    pub blobs: Vec<BlobRef>,
}

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Made by a newer broker that relies on it.
    #[error(
        "record kind {kind} version {version} is not known to this version of the broker, and it matters"
    )]
    Unknown {
        /// Its kind.
        kind: u16,
        /// Its version.
        version: u8,
    },
    /// Not what this kind looks like.
    #[error("{name} record cannot be read")]
    Malformed {
        /// Its name.
        name: &'static str,
        /// What the decoder says.
        source: rmp_serde::decode::Error,
    },
}

macro_rules! records {
    ($($(#[$meta:meta])* $number:literal $name:ident $class:ident,)*) => {
        /// Any record.
        #[expect(clippy::large_enum_variant, reason = "records live for one turn; a box would cost each an allocation")]
        #[derive(Debug, Clone, PartialEq)]
        pub enum Record {
            $(#[doc = concat!("See [`", stringify!($name), "`].")] $name($name),)*
        }

        impl Record {
            /// The number of its kind in the log.
            #[must_use]
            pub fn kind(&self) -> u16 {
                match self { $(Record::$name(_) => $number,)* }
            }

            /// Its name, for people.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self { $(Record::$name(_) => stringify!($name),)* }
            }

            /// Which space of a full disk it may use.
            #[must_use]
            pub fn class(&self) -> crate::Class {
                match self { $(Record::$name(_) => crate::Class::$class,)* }
            }

            /// As bytes.
            ///
            /// # Errors
            /// Only when memory ends.
            pub fn encode(&self) -> Result<Vec<u8>, rmp_serde::encode::Error> {
                match self { $(Record::$name(body) => rmp_serde::to_vec_named(body),)* }
            }

            /// From bytes. None: not known, and an older broker may do without it.
            ///
            /// # Errors
            /// When it is not known and critical, or malformed.
            pub fn decode(kind: u16, version: u8, critical: bool, bytes: &[u8]) -> Result<Option<Record>, RecordError> {
                match (kind, version) {
                    $(($number, VERSION) => rmp_serde::from_slice::<$name>(bytes)
                        .map(|body| Some(Record::$name(body)))
                        .map_err(|source| RecordError::Malformed { name: stringify!($name), source }),)*
                    _ if critical => Err(RecordError::Unknown { kind, version }),
                    _ => Ok(None),
                }
            }
        }

        $(impl From<$name> for Record {
            fn from(body: $name) -> Record { Record::$name(body) }
        })*
    };
}

/// Version of all records so far.
pub const VERSION: u8 = 1;

records! {
    1 JobSubmitted Ordinary,
    2 TasksAppended Ordinary,
    3 JobClosed Outcome,
    4 TasksEnded Outcome,
    5 AttemptsFailed Outcome,
    6 Cancelled Outcome,
    7 JobForgotten Outcome,
    8 FunctionPut Ordinary,
    9 EndpointPut Ordinary,
    10 EndpointRemoved Outcome,
    11 EpochGranted Outcome,
    12 RelayEnded Outcome,
    13 TokenAdded Ordinary,
    14 TokenRevoked Outcome,
    15 TasksHanded Outcome,
    16 PayloadPut Outcome,
}

impl Record {
    /// Whether a reader that does not know it must refuse the log: so far each of them changes what is true.
    #[must_use]
    pub fn is_critical(&self) -> bool {
        true
    }
}

/// Rows as packed bytes.
mod rows {
    use crate::ended::Row;
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(rows: &[Row], serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(rows.len() * Row::BYTES);
        rows.iter().for_each(|row| row.pack(&mut bytes));
        serializer.serialize_bytes(&bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Row>, D::Error> {
        let bytes: &[u8] = serde::Deserialize::deserialize(deserializer)?;
        Row::unpack_all(bytes).ok_or_else(|| serde::de::Error::custom("rows are cut or of an unknown kind"))
    }
}
