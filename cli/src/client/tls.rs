//! TLS to a broker on another host. Only the certificate that the user keeps is believed: no authority, no host names.

use crate::config::BrokerConfig;
use crate::error::{CliError, Result, io_error};
use crate::exit::Exit;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A broker on another host.
pub(super) struct Remote {
    host: String,
    port: u16,
    token: String,
    connector: TlsConnector,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// Host and port of `https://HOST:PORT`.
fn split_address(address: &str) -> Option<(String, u16)> {
    let (host, port) = address.strip_prefix("https://")?.trim_end_matches('/').rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty() && !host.contains('/')).then_some((host.to_owned(), port.parse().ok()?))
}

impl Remote {
    pub(super) fn new(address: &str, broker: &BrokerConfig) -> Result<Remote> {
        let (host, port) = split_address(address).ok_or_else(|| {
            CliError::usage(format!("broker.address {address:?} is not an address"))
                .hint("write https://HOST:PORT")
        })?;
        let path = &broker.certificate;
        let pinned = CertificateDer::from_pem_file(path).map_err(|e| {
            CliError::usage(format!("read the broker's certificate {}", path.display()))
                .because(e)
                .hint("copy what `pf broker cert` prints on the broker's host there")
        })?;
        let token = broker.token.clone().map_or_else(|| read_token(broker), Ok)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| CliError::internal("set up TLS").because(e))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned { certificate: pinned, provider }))
            .with_no_client_auth();
        Ok(Remote { host, port, token, connector: TlsConnector::from(Arc::new(config)) })
    }

    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    pub(super) fn authorization(&self) -> String {
        format!("Bearer {}", self.token)
    }

    pub(super) async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let unreachable =
            || CliError::new(Exit::Unreachable, format!("no broker answers at https://{}", self.authority()));
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|e| unreachable().because(e))?;
        let name = ServerName::try_from(self.host.clone())
            .map_err(|e| CliError::usage(format!("{:?} is no host name", self.host)).because(e))?;
        self.connector.connect(name, stream).await.map_err(|e| {
            unreachable()
                .because(e)
                .hint("if the broker has a new certificate, copy it again (`pf broker cert`)")
        })
    }
}

fn read_token(broker: &BrokerConfig) -> Result<String> {
    let path = &broker.token_file;
    let hint = "write what `pf broker token add NAME` prints there, with mode 0600";
    let meta = std::fs::metadata(path).map_err(|e| {
        let mut error = io_error(format!("read the token {}", path.display()), e).hint(hint);
        error.exit = Exit::Usage;
        error
    })?;
    if meta.mode() & 0o077 != 0 {
        let error = CliError::usage(format!(
            "token file {} is open to others (mode {:03o})",
            path.display(),
            meta.mode() & 0o777
        ));
        return Err(error.hint(format!("chmod 600 {}", path.display())));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|e| io_error(format!("read the token {}", path.display()), e))?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(
            CliError::usage(format!("token file {} does not hold a token", path.display())).hint(hint)
        );
    }
    Ok(token.to_owned())
}

/// Believes exactly one certificate. The handshake's signature is still checked: it proves the key.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        if shown.as_ref() == self.certificate.as_ref() {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("the broker shows another certificate than the one kept here".into()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_https_with_a_port() {
        assert_eq!(split_address("https://login1:8443"), Some(("login1".into(), 8443)));
        assert_eq!(split_address("https://[::1]:8443/"), Some(("::1".into(), 8443)));
        for bad in ["http://x:1", "https://x", "https://:1", "x:1", "https://x:99999", "https://a/b:1"] {
            assert_eq!(split_address(bad), None, "{bad}");
        }
    }
}
