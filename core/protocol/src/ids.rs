//! The one register of ids. Text forms: `j123` (job), `j123.45` (task), `b7` (block).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Why a text is not the id it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}, which is written like {example}")]
pub struct ParseIdError {
    text: String,
    what: &'static str,
    example: &'static str,
}

macro_rules! number_id {
    ($(#[$meta:meta])* $name:ident($inner:ty), $prefix:literal, $what:literal, $example:literal) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let error = || ParseIdError { text: text.into(), what: $what, example: $example };
                let digits = text.strip_prefix($prefix).unwrap_or(text);
                if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(error());
                }
                digits.parse().map($name).map_err(|_| error())
            }
        }
    };
}

number_id!(
    /// A job, numbered by the broker from 1.
    JobId(u64), "j", "job", "j123");
number_id!(
    /// A block of an endpoint, numbered by its relay from 1 and never reused. A requeued block keeps it and counts its incarnation.
    BlockId(u64), "b", "block", "b7");
number_id!(
    /// An endpoint, numbered by the broker from 1. People use its name.
    EndpointId(u64), "e", "endpoint id", "e1");
number_id!(
    /// Who owns a record. The broker's own user is 1.
    OwnerId(u64), "u", "owner id", "u1");
number_id!(
    /// A reign: of a broker over its folder, or of a relay over its endpoint. Higher wins.
    Epoch(u32), "r", "epoch", "r3");

/// A task: the job and the position in it, counted from 0 without holes. What people see is [`crate::job::ArraySpec::label`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct TaskId {
    /// The job.
    pub job: JobId,
    /// The position in the job, from 0.
    pub index: u32,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.job, self.index)
    }
}

impl FromStr for TaskId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = || ParseIdError { text: text.into(), what: "task", example: "j123.45" };
        let (job, index) = text.split_once('.').ok_or_else(error)?;
        if !index.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error());
        }
        Ok(TaskId { job: job.parse().map_err(|_| error())?, index: index.parse().map_err(|_| error())? })
    }
}

/// One run of a task on a manager, minted by the relay only. Newer compares greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct AttemptId {
    /// The relay's epoch.
    pub epoch: Epoch,
    /// Counted from 1 within the epoch.
    pub n: u32,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch.0, self.n)
    }
}

/// One manager process: a node of a block, in one life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ManagerId {
    /// The block that it is part of.
    pub block: BlockId,
    /// The node's place in the block, from 0.
    pub node: u16,
    /// Random for each process, so that a restarted manager is not taken for the old one.
    pub incarnation: u64,
}

impl fmt::Display for ManagerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.block, self.node)
    }
}

macro_rules! bytes_id {
    ($(#[$meta:meta])* $name:ident, $len:literal, $what:literal, $example:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let error = || ParseIdError { text: text.into(), what: $what, example: $example };
                if text.len() != $len * 2 || !text.is_ascii() {
                    return Err(error());
                }
                let mut out = [0u8; $len];
                for (i, byte) in out.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| error())?;
                }
                Ok($name(out))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { serde_bytes::Bytes::new(&self.0).serialize(s) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
                } else {
                    let bytes = serde_bytes::ByteArray::<$len>::deserialize(d)?;
                    Ok($name(bytes.into_array()))
                }
            }
        }
    };
}

bytes_id!(
    /// The client's own key of a job: the same key with the same content is the same job, however often it is sent.
    JobKey, 16, "job key", "32 hexadecimal digits");
bytes_id!(
    /// A function: BLAKE2b-256 over (format version, kind, bytes), see [`crate::job::Function::id`].
    FunctionId, 32, "function id", "64 hexadecimal digits");
bytes_id!(
    /// BLAKE2b-256 of a payload or an environment.
    ContentHash, 32, "content hash", "64 hexadecimal digits");

/// Where the store keeps a payload. 12 bytes; meaningless outside the broker's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct BlobRef {
    /// Payload segment number.
    pub segment: u32,
    /// Byte offset in the segment.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_what_they_write() {
        assert_eq!("j123".parse(), Ok(JobId(123)));
        assert_eq!("123".parse(), Ok(JobId(123)));
        assert_eq!(JobId(123).to_string(), "j123");
        assert_eq!("j123.45".parse(), Ok(TaskId { job: JobId(123), index: 45 }));
        assert_eq!(TaskId { job: JobId(1), index: 2 }.to_string(), "j1.2");
        for bad in ["", "j", "jj1", "j-1", "j1.", "x1", "j99999999999999999999999", "j+1"] {
            assert!(bad.parse::<JobId>().is_err(), "{bad}");
        }
        assert!("j1.".parse::<TaskId>().is_err());
        assert!("j1.4294967296".parse::<TaskId>().is_err());
        let id = FunctionId([0xab; 32]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("é".repeat(16).parse::<JobKey>().is_err());
    }
}
