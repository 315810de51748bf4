//! A relay in a place of its own, as on another host: it dials its broker by TCP, with CURVE.

use pf_tests::site::{Background, Site, kill_hard, wait_for};

const HOST: &str = "127.0.0.1";

/// A broker that listens for relays, the place of a relay, and the words with which that one dials.
struct Pair {
    broker: Site,
    relay: Site,
    dial: String,
    broker_key: String,
}

impl Pair {
    fn new() -> Pair {
        let (mut broker, relay) = (Site::new(), Site::new());
        let dial = broker.listen_for_relays(HOST);
        relay.pf(&["endpoint", "add", "far", "--set", "provider=local"]).expect_code(0);
        let broker_key = broker.pf(&["broker", "key"]).expect_code(0).stdout.trim().to_owned();
        Pair { broker, relay, dial, broker_key }
    }

    fn allow(&self) {
        let key = self.relay.pf(&["relay", "key", "far"]).expect_code(0).stdout.trim().to_owned();
        self.broker.pf(&["endpoint", "add", "far", "--relay-key", &key]).expect_code(0);
    }

    fn run(&self, broker_key: &str) -> Background {
        self.relay.spawn(&["relay", "run", "far", "--broker", &self.dial, "--broker-key", broker_key])
    }

    fn state(&self) -> String {
        let shown = self.broker.pf(&["endpoint", "show", "far", "--json"]).expect_code(0).json();
        shown["state"].as_str().unwrap_or_default().to_owned()
    }
}

#[test]
fn a_relay_elsewhere_runs_tasks_and_its_successor_waits_for_its_end() {
    let pair = Pair::new();
    pair.allow();
    let mut first = pair.run(&pair.broker_key);
    first.wait_for_talk("serves endpoint far (epoch 1)");
    let job = ["submit", "--quiet", "--endpoint", "far", "--array", "1-20", "--", "echo", "n{index}"];
    let job = pair.broker.pf(&job).expect_code(0).stdout.trim().to_owned();
    pair.broker.pf(&["wait", &job]).expect_code(0);
    assert_eq!(pair.broker.pf(&["logs", &format!("{job}.7")]).expect_code(0).stdout, "n7\n");

    // One that runs keeps its place.
    pair.run(&pair.broker_key).end().expect_code(3).says(&["served by another relay", "take over"]);

    kill_hard(first.pid());
    drop(first);
    wait_for("the end to be seen", || (pair.state() == "absent").then_some(()));
    let mut second = pair.run(&pair.broker_key);
    second.wait_for_talk("it is free in");
    second.wait_for_talk("serves endpoint far (epoch 2)");
    pair.broker.pf(&["endpoint", "stop", "far"]).expect_code(0);
    second.end().expect_code(0);
}

#[test]
fn a_key_that_is_not_right_is_told_on_either_side() {
    let pair = Pair::new();
    let mut unknown = pair.run(&pair.broker_key);
    unknown.wait_for_talk("refused our key");
    unknown.wait_for_talk("pf endpoint add far --relay-key '");
    drop(unknown);

    pair.allow();
    // Another key than the broker's, though a good one: the relay's own.
    let other = pair.relay.pf(&["relay", "key", "far"]).expect_code(0).stdout.trim().to_owned();
    let mut deceived = pair.run(&other);
    deceived.wait_for_talk("no CURVE handshake");
    deceived.wait_for_talk("pf broker key");
    assert_eq!(pair.state(), "absent");
}
