//! CURVE keys: made, written to files that nobody else can read, and back. Used by whoever listens or dials.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::error::TransportError;

/// Characters of a key as z85 text.
pub(crate) const Z85_CHARS: usize = 40;

/// Bytes of a key file that are read at most; a good one has 2 short lines.
const KEY_FILE_BYTES_MAX: u64 = 4_096;

/// A CURVE public key. Prints as z85 text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// The key as 40 characters of z85.
    pub fn to_z85(&self) -> String {
        encode(&self.0)
    }

    /// Reads 40 characters of z85.
    pub fn from_z85(text: &str) -> Result<Self, TransportError> {
        decode(text, "public key").map(Self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_z85())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// A CURVE key pair. Its `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// What others may know.
    pub public: PublicKey,
    secret: [u8; 32],
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("public", &self.public).finish_non_exhaustive()
    }
}

impl KeyPair {
    /// A new pair from the system's random numbers.
    pub fn generate() -> Result<Self, TransportError> {
        let pair = zmq::CurveKeyPair::new().map_err(TransportError::zmq("make a CURVE key pair"))?;
        Ok(Self { public: PublicKey(pair.public_key), secret: pair.secret_key })
    }

    /// A pair from its two texts, as a ticket carries them.
    pub fn from_z85(public: &str, secret: &str) -> Result<Self, TransportError> {
        Ok(Self { public: PublicKey::from_z85(public)?, secret: decode(secret, "secret key")? })
    }

    /// The secret key as z85 text: for a 0600 file or ticket only, never for logs.
    pub fn secret_z85(&self) -> String {
        encode(&self.secret)
    }

    pub(crate) fn secret_bytes(&self) -> &[u8; 32] {
        &self.secret
    }

    /// Writes the pair to a new file of mode 0600. An existing file is an error and is left as it is; a reader sees
    /// the whole file or none.
    pub fn save(&self, path: &Path) -> Result<(), TransportError> {
        let fail = |source| TransportError::KeyFile { operation: "write", path: path.to_path_buf(), source };
        let name = path.file_name().ok_or_else(|| fail(io::ErrorKind::InvalidInput.into()))?;
        let draft = path.with_file_name(format!(".{}.{}.new", name.to_string_lossy(), self.draft_suffix()));
        let written = self.write_new(&draft).and_then(|()| fs::hard_link(&draft, path));
        // The draft goes in any case; a leftover would hold the secret, and its name is never reused.
        let _ = fs::remove_file(&draft);
        written.map_err(fail)
    }

    /// A suffix that no other writer has: the process, and the key itself.
    fn draft_suffix(&self) -> String {
        let [a, b, c, d, ..] = self.public.0;
        format!("{}-{a:02x}{b:02x}{c:02x}{d:02x}", std::process::id())
    }

    fn write_new(&self, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        write!(file, "public {}\nsecret {}\n", self.public, self.secret_z85())?;
        file.sync_all()
    }

    /// Reads a pair that [`Self::save`] wrote. A file that group or others can use in any way is refused.
    pub fn load(path: &Path) -> Result<Self, TransportError> {
        let fail = |source| TransportError::KeyFile { operation: "read", path: path.to_path_buf(), source };
        let file = File::open(path).map_err(fail)?;
        let mode = file.metadata().map_err(fail)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TransportError::KeyFileOpen { path: path.to_path_buf(), mode });
        }
        let mut text = String::new();
        file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text).map_err(fail)?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim);
        Self::from_z85(field("public "), field("secret "))
    }

    /// Reads the pair at `path`; makes and saves one if there is no file.
    pub fn load_or_generate(path: &Path) -> Result<Self, TransportError> {
        match Self::load(path) {
            Err(TransportError::KeyFile { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let pair = Self::generate()?;
        match pair.save(path) {
            // Somebody was faster; theirs is the key.
            Err(TransportError::KeyFile { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                Self::load(path)
            }
            other => other.map(|()| pair),
        }
    }
}

const Z85_DIGITS: &[u8; 85] =
    b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";

/// Four bytes, big end first, are five digits to the base 85 (ZeroMQ RFC 32).
fn encode(key: &[u8; 32]) -> String {
    let mut text = String::with_capacity(Z85_CHARS);
    for group in key.chunks_exact(4) {
        let value = group.iter().fold(0u32, |value, byte| value << 8 | u32::from(*byte));
        for power in [52_200_625, 614_125, 7_225, 85, 1] {
            text.push(char::from(Z85_DIGITS[(value / power % 85) as usize]));
        }
    }
    text
}

/// Strict, unlike libzmq's own: every character must be a digit, and no group may overflow.
fn decode(text: &str, what: &'static str) -> Result<[u8; 32], TransportError> {
    let bad = || TransportError::BadKey { what };
    if text.len() != Z85_CHARS {
        return Err(bad());
    }
    let mut key = [0u8; 32];
    for (digits, bytes) in text.as_bytes().chunks_exact(5).zip(key.chunks_exact_mut(4)) {
        let mut value = 0u64;
        for digit in digits {
            let place = Z85_DIGITS.iter().position(|known| known == digit).ok_or_else(bad)?;
            value = value * 85 + place as u64;
        }
        bytes.copy_from_slice(&u32::try_from(value).map_err(|_| bad())?.to_be_bytes());
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_pair_survives_its_file_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relay.key");
        let pair = KeyPair::load_or_generate(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(KeyPair::load(&path).unwrap(), pair);
        assert_eq!(KeyPair::load_or_generate(&path).unwrap(), pair);
        let error = KeyPair::generate().unwrap().save(&path).unwrap_err();
        assert!(matches!(error, TransportError::KeyFile { operation: "write", .. }), "{error}");
        assert_eq!(KeyPair::load(&path).unwrap(), pair);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_key_open_to_others_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relay.key");
        KeyPair::generate().unwrap().save(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = KeyPair::load(&path).unwrap_err().to_string();
        assert!(error.contains("open to others (mode 640)"), "{error}");
    }

    #[test]
    fn debug_hides_the_secret() {
        let pair = KeyPair::generate().unwrap();
        assert!(!format!("{pair:?}").contains(&pair.secret_z85()));
    }

    proptest! {
        #[test]
        fn public_keys_survive_text(key: [u8; 32]) {
            let key = PublicKey(key);
            prop_assert_eq!(key.to_z85(), zmq::z85_encode(&key.0).unwrap());
            prop_assert_eq!(PublicKey::from_z85(&key.to_z85()).unwrap(), key);
        }

        #[test]
        fn any_text_is_a_key_or_an_error(text in "\\PC{0,48}") {
            let _ = PublicKey::from_z85(&text);
        }

        #[test]
        fn text_of_the_right_length_never_panics(text in "[ -~]{40}") {
            let _ = PublicKey::from_z85(&text);
        }
    }
}
