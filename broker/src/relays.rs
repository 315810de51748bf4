//! Where relays from other hosts come in: CURVE with the broker's own key, for the keys of known endpoints only. Used at start.

use crate::error::BrokerError;
use pf_transport::{AllowList, KeyPair, ListenSpec, NodeId, Ports, PublicKey, Reactor};
use std::path::{Path, PathBuf};

/// Name of the file with the broker's CURVE key pair, 0600, in [`RelayListen::key_dir`].
const KEY_NAME: &str = "broker.key";

/// Where to listen for relays.
#[derive(Debug, Clone)]
pub struct RelayListen {
    /// Interfaces, by address or name.
    pub hosts: Vec<String>,
    /// The port; it must stay the same, since relays dial it. 0: any free one.
    pub port: u16,
    /// Where the broker's key is kept: the durable place.
    pub key_dir: PathBuf,
}

/// The public key that relays must expect of the broker; made and kept in `key_dir` if it is not there yet.
///
/// # Errors
/// When the key can neither be read nor made.
pub fn relay_facing_key(key_dir: &Path) -> Result<PublicKey, BrokerError> {
    Ok(KeyPair::load_or_generate(&key_dir.join(KEY_NAME))?.public)
}

/// Listens for relays. Answers the addresses (`host:port`) and the public key that relays must expect there.
///
/// `allow` is [`crate::BrokerNode::allow_list`]: the node keeps it equal to the relay keys of all endpoints.
///
/// # Errors
/// When the key cannot be read or made, or no address can be used.
pub fn listen_for_relays(
    reactor: &mut Reactor,
    broker: NodeId,
    allow: AllowList,
    listen: &RelayListen,
) -> Result<(Vec<String>, PublicKey), BrokerError> {
    let keys = KeyPair::load_or_generate(&listen.key_dir.join(KEY_NAME))?;
    let public = keys.public;
    let spec = ListenSpec { hosts: listen.hosts.clone(), ports: Ports::only(listen.port), keys, allow };
    Ok((reactor.listen(broker, spec)?, public))
}
