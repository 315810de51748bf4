//! The broker's certificate: self-signed, made at the first start, pinned by clients. Used at start and by `pf broker`.

use crate::error::{BrokerError, IoContext};
use pf_protocol::job::content_hash;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// One file holds certificate and key, so that no crash can leave one without the other.
const FILE_NAME: &str = "broker-tls.pem";

/// Certificate and key of a broker.
pub struct Identity {
    /// The certificate alone, PEM: what clients pin.
    pub certificate_pem: String,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the identity in `dir`, or makes one for `names` (host names and addresses) and keeps it there, 0600.
    ///
    /// # Errors
    /// When the file cannot be read or made, is open to others, or is not a certificate with its key.
    pub fn load_or_generate(dir: &Path, names: &[String]) -> Result<Identity, BrokerError> {
        let path = dir.join(FILE_NAME);
        match fs::read_to_string(&path) {
            Ok(text) => {
                let mode = fs::metadata(&path).on("look at", &path)?.mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(BrokerError::Unsafe {
                        path,
                        reason: format!("is open to others (mode {mode:o}, must be 600)"),
                    });
                }
                Identity::parse(&text, &path)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let text = generate(names).map_err(|source| BrokerError::Certificate {
                    action: "make",
                    path: path.clone(),
                    source: Box::new(source),
                })?;
                save(&path, &text)?;
                Identity::parse(&text, &path)
            }
            Err(error) => Err(error).on("read", &path),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Identity, BrokerError> {
        let bad = |source| BrokerError::Certificate {
            action: "read",
            path: path.to_path_buf(),
            source: Box::new(source),
        };
        let certificate = CertificateDer::from_pem_slice(text.as_bytes()).map_err(bad)?;
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(bad)?;
        // The certificate comes first in the file, whole with its own begin and end lines.
        let end = "-----END CERTIFICATE-----\n";
        let pem_end = text.find(end).map_or(text.len(), |at| at + end.len());
        Ok(Identity { certificate_pem: text[..pem_end].to_owned(), certificate, key })
    }

    /// BLAKE2b-256 of the certificate, hexadecimal: short enough to compare by eye.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        content_hash(&self.certificate).to_string()
    }

    /// The configuration for a listener.
    pub(crate) fn server_config(&self) -> Result<Arc<ServerConfig>, BrokerError> {
        let bad = |source| BrokerError::System { action: "set up TLS", source: Box::new(source) };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(bad)?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())
            .map_err(bad)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn generate(names: &[String]) -> Result<String, rcgen::Error> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(names.to_vec())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "pilotfish broker");
    let certificate = params.self_signed(&key)?.pem().replace("\r\n", "\n");
    Ok(format!("{certificate}{}", key.serialize_pem().replace("\r\n", "\n")))
}

/// Written aside and renamed, so that a crash never leaves half of it.
fn save(path: &Path, text: &str) -> Result<(), BrokerError> {
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().on("write", path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_identity_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["login1.example.org".to_owned(), "127.0.0.1".to_owned()];
        let first = Identity::load_or_generate(dir.path(), &names).unwrap();
        let path = dir.path().join(FILE_NAME);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(first.certificate_pem.starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(!first.certificate_pem.contains("PRIVATE"));
        first.server_config().unwrap();
        let again = Identity::load_or_generate(dir.path(), &[]).unwrap();
        assert_eq!(again.fingerprint(), first.fingerprint());
        assert_eq!(again.certificate_pem, first.certificate_pem);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Identity::load_or_generate(dir.path(), &[]), Err(BrokerError::Unsafe { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "garbage").unwrap();
        let error = Identity::load_or_generate(dir.path(), &[]).unwrap_err();
        assert!(matches!(error, BrokerError::Certificate { action: "read", .. }), "{error}");
    }
}
