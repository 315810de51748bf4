//! A whole broker in this process: real store, real sockets, and a relay that runs nothing.

pub mod client;
pub mod relay;

use client::Client;
use pf_broker::{BrokerConfig, BrokerHandle, BrokerNode, HttpConfig, HttpServer};
use pf_transport::Reactor;
use relay::FakeRelay;
use std::path::Path;
use std::thread::JoinHandle;

pub struct World {
    pub handle: BrokerHandle,
    pub http: Option<HttpServer>,
    reactor: Option<JoinHandle<()>>,
}

/// What the relay of a world does with its tasks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum RelayIs {
    Absent,
    /// It takes tasks and never answers.
    Idle,
    Working,
}

impl World {
    pub fn start(root: &Path, relay: RelayIs) -> World {
        World::start_with(root, relay, None)
    }

    pub fn start_with(root: &Path, relay: RelayIs, tls_listen: Option<String>) -> World {
        let mut config = BrokerConfig::new(root.join("log"), "tester", "testhost");
        config.local_endpoints = vec!["local".into()];
        let (node, handle) = BrokerNode::open(&config).unwrap();
        let mut reactor = Reactor::new().unwrap();
        let broker = reactor.add(Box::new(node));
        if relay != RelayIs::Absent {
            let fake = reactor.add(Box::new(FakeRelay::new("local", relay == RelayIs::Working)));
            reactor.pair(broker, fake);
        }
        let reactor = std::thread::spawn(move || reactor.run().unwrap());
        let http = HttpConfig {
            local_dir: root.join("run"),
            tls_listen,
            tls_names: vec!["localhost".into()],
            tls_dir: root.to_path_buf(),
        };
        let http = HttpServer::start(handle.clone(), &http).unwrap();
        World { handle, http: Some(http), reactor: Some(reactor) }
    }

    pub fn client(&self) -> Client {
        Client::unix(self.http.as_ref().unwrap().socket_path())
    }

    /// The end in order.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(http) = self.http.take() {
            http.stop();
        }
        self.handle.stop();
        if let Some(reactor) = self.reactor.take() {
            reactor.join().unwrap();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

/// A command job as JSON.
pub fn job(count: u32, open: bool) -> Vec<u8> {
    serde_json::to_vec(&serde_json::json!({
        "spec": {"body": {"command": {"argv": ["true"]}}, "group": 5},
        "count": count, "open": open,
    }))
    .unwrap()
}

pub fn key(n: u64) -> String {
    format!("{n:032x}")
}

/// Waits for a condition, and not for ever.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = std::time::Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed().as_secs() < 60, "{what} did not come");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
