//! The broker's shell: store, HTTP API, links. `pf` composes a process of it:
//!
//! ```no_run
//! use pf_broker::{BrokerConfig, BrokerNode, HttpConfig, HttpServer};
//! use pf_transport::Reactor;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = BrokerConfig::new("/home/me/.local/share/pilotfish/log".into(), "me", "login1");
//! let (node, handle) = BrokerNode::open(&config)?;
//! let mut reactor = Reactor::new()?;
//! let broker = reactor.add(Box::new(node));
//! // Here `pf` adds a relay and pairs it: reactor.pair(broker, relay), with the name of its endpoint in config.local_endpoints;
//! // or lets relays come from elsewhere: pf_broker::listen_for_relays(&mut reactor, broker, allow, &RelayListen { .. }), where `allow` is
//! // node.allow_list(), taken before the node is added.
//! let reactor = std::thread::spawn(move || reactor.run());
//! let http = HttpServer::start(handle.clone(), &HttpConfig { local_dir: "/run/user/1000/pilotfish".into(), ..HttpConfig::default() })?;
//! // .. until handle.shutdown_asked() or a signal; then, in this order:
//! http.stop();
//! handle.stop();
//! reactor.join().map_err(|_| "the reactor panicked")??;
//! let failed = handle.failure();
//! # drop((broker, failed)); Ok(()) }
//! ```

mod api_error;
pub mod columns;
mod error;
mod handle;
mod http;
pub mod limits;
mod loader;
mod local;
mod node;
mod relays;
mod storage;
mod tls;
mod token;

pub use api_error::ApiError;
pub use error::BrokerError;
pub use handle::{BROKER_OWNER, BrokerHandle};
pub use http::{HttpConfig, HttpServer};
pub use local::{LocalSocket, SOCKET_NAME, private_dir};
pub use node::{BrokerConfig, BrokerNode};
pub use pf_broker_core::{Caller, Reply, Request, Verb};
pub use relays::{RelayListen, listen_for_relays, relay_facing_key};
pub use tls::Identity;
