//! Moves frames: ZeroMQ with CURVE, one thread for all sockets of a process.
//!
//! The shells of broker, relay, pilot and manager implement [`Node`] around their cores and give them to a
//! [`Reactor`]. The reactor owns every ZMQ socket and calls the nodes on its one thread, so that a core is never
//! reached through a channel. What frames mean is the business of `pf-link`; here they are bytes on a [`Conn`].
//!
//! ```no_run
//! use bytes::Bytes;
//! use pf_transport::{AllowList, Conn, KeyPair, ListenSpec, Node, Outbox, Ports, Reactor};
//!
//! struct Echo;
//! impl Node for Echo {
//!     fn on_frame(&mut self, _now: u64, conn: Conn, frame: Bytes, out: &mut Outbox) {
//!         out.send(conn, frame);
//!     }
//! }
//!
//! # fn main() -> Result<(), pf_transport::TransportError> {
//! let allow = AllowList::new();
//! let mut reactor = Reactor::new()?;
//! let echo = reactor.add(Box::new(Echo));
//! let spec = ListenSpec { hosts: vec!["127.0.0.1".into()], ports: Ports::any(), keys: KeyPair::generate()?, allow };
//! let addresses = reactor.listen(echo, spec)?;
//! let waker = reactor.waker(echo);
//! std::thread::spawn(move || reactor.run());
//! # drop((addresses, waker)); Ok(()) }
//! ```

mod allow;
mod backoff;
mod clock;
mod conns;
mod error;
mod files;
mod keys;
pub mod limits;
mod node;
mod outbox;
mod reactor;
mod sockets;
mod waker;
mod zap;

pub use allow::AllowList;
pub use backoff::Backoff;
pub use clock::now_us;
pub use error::TransportError;
pub use files::raise_file_limit;
pub use keys::{KeyPair, PublicKey};
pub use node::{CloseReason, Conn, DialSpec, ListenSpec, Node, NodeId, Peer, Ports};
pub use outbox::Outbox;
pub use reactor::Reactor;
pub use waker::Waker;
