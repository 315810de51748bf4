//! Every named maximum of this crate, with its reason.

/// Bytes of a profile's file; the largest of ours has 5 KiB.
pub const PROFILE_BYTES_MAX: u64 = 256 << 10;

/// Profiles that are looked at in one folder: far more machines than a person has.
pub const PROFILES_MAX: usize = 1_000;

/// Lines of a scheduler's answer that are read: more queues and nodes than any machine has.
pub const LINES_MAX: usize = 200_000;

/// Characters of a scheduler's words that travel in an error.
pub const WORDS_CHARS_MAX: usize = 2_000;
