//! Every named maximum of the providers, with its reason.

/// Bytes of a scheduler's words that travel in an error: enough for its complaint, not for a page of banners.
pub const WORDS_BYTES_MAX: usize = 2_000;

/// Lines of status output that are read: far more blocks than any user may have.
pub const STATUS_LINES_MAX: usize = 100_000;
