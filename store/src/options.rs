//! What can be chosen when a store is opened. Used by `Store::open`, the sync thread and the memory store's callers.

use std::time::Duration;

use crate::error::StoreError;
use crate::frame;
use crate::limits;

/// Sizes and times of a store. `Options::default()` is right for a broker; tests use smaller ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Alignment of commit frames in bytes: a power of two from 512 to 65,536. See [`limits::BLOCK_BYTES`].
    pub block_bytes: u32,
    /// Preallocated size of a log segment in bytes.
    pub log_segment_bytes: u64,
    /// Size at which a new payload segment is begun, in bytes.
    pub payload_segment_bytes: u32,
    /// Size of the reserve for outcomes in bytes; 0 for none.
    pub reserve_bytes: u64,
    /// Free space in bytes below which only outcomes are accepted.
    pub low_water_bytes: u64,
    /// Bytes that may wait for the disk before ordinary work is refused.
    pub queue_bytes_max: usize,
    /// How long a taker on another host must see no renewal.
    pub lease: Duration,
    /// How often the hold is renewed.
    pub renew_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            block_bytes: limits::BLOCK_BYTES,
            log_segment_bytes: limits::LOG_SEGMENT_BYTES,
            payload_segment_bytes: limits::PAYLOAD_SEGMENT_BYTES,
            reserve_bytes: limits::RESERVE_BYTES,
            low_water_bytes: limits::LOW_WATER_BYTES,
            queue_bytes_max: limits::QUEUE_BYTES_MAX,
            lease: limits::LEASE,
            renew_every: limits::RENEW_EVERY,
        }
    }
}

impl Options {
    /// Refuses values that cannot work.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let bad = |name, reason: &str| Err(StoreError::Option { name, reason: reason.to_string() });
        if !frame::is_block_size(self.block_bytes) {
            return bad("block_bytes", "must be a power of two from 512 to 65536");
        }
        if self.log_segment_bytes < 2 * u64::from(self.block_bytes) {
            return bad("log_segment_bytes", "must hold at least two blocks");
        }
        if self.payload_segment_bytes < 4096 {
            return bad("payload_segment_bytes", "must be at least 4096");
        }
        if self.renew_every * 2 > self.lease * limits::ACKNOWLEDGE_PERCENT / 100 {
            return bad("renew_every", "must be at most a third of the lease");
        }
        Ok(())
    }
}
