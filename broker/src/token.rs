//! Bearer tokens: made here, shown once, kept only as their hash. Used by the HTTP handlers.
//!
//! A token is never compared: its hash is looked up. What the time of a look-up could tell is the beginning of somebody's hash, from which
//! no token with that hash can be found; so no comparison in constant time is needed.

use pf_protocol::ids::ContentHash;
use pf_protocol::job::content_hash;

/// What every token begins with, so that people and secret scanners know it.
const PREFIX: &str = "pft_";
/// Random bytes of a token: beyond guessing, so that a plain hash is enough to store it.
const SECRET_BYTES: usize = 32;
/// Characters of a token.
const TOKEN_CHARS: usize = PREFIX.len() + 2 * SECRET_BYTES;

/// A new token: the text for its user, and the hash that is kept.
///
/// # Errors
/// When the system has no random numbers.
pub fn generate() -> Result<(String, ContentHash), getrandom::Error> {
    let mut secret = [0u8; SECRET_BYTES];
    getrandom::fill(&mut secret)?;
    let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let token = format!("{PREFIX}{digits}");
    let hash = content_hash(token.as_bytes());
    Ok((token, hash))
}

/// The hash of the token in an `Authorization` header; None if the header holds no token of ours.
#[must_use]
pub fn hash_of_header(value: &[u8]) -> Option<ContentHash> {
    let (scheme, token) = value.split_at_checked(7)?;
    let token = token.trim_ascii();
    let ours = scheme.eq_ignore_ascii_case(b"bearer ")
        && token.len() == TOKEN_CHARS
        && token.starts_with(PREFIX.as_bytes());
    ours.then(|| content_hash(token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_token_is_found_by_its_hash_only() {
        let (token, hash) = generate().unwrap();
        let found = hash_of_header(format!("Bearer {token}").as_bytes()).unwrap();
        assert_eq!(found, hash);
        assert_eq!(hash_of_header(format!("bearer  {token} ").as_bytes()), Some(hash));
        let (other, _) = generate().unwrap();
        assert_ne!(hash_of_header(format!("Bearer {other}").as_bytes()), Some(hash));
        assert_eq!(hash_of_header(format!("Basic {token}").as_bytes()), None);
        assert_eq!(hash_of_header(format!("Bearer {token}0").as_bytes()), None);
        assert_eq!(hash_of_header(b""), None);
    }

    proptest! {
        #[test]
        fn any_header_is_survived(value in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = hash_of_header(&value);
        }
    }
}
