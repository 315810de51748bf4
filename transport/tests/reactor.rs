//! What the reactor promises its nodes, over real sockets on the loopback interface.
#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

use std::io::Write;
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pf_transport::{
    AllowList, CloseReason, Conn, DialSpec, KeyPair, ListenSpec, Node, NodeId, Outbox, Peer, Ports, Reactor,
    Waker,
};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a node was told.
#[derive(Debug, PartialEq)]
enum Told {
    Accepted(Conn, Peer),
    Connected(Conn),
    Frame(Conn, Bytes),
    Closed(Conn, CloseReason),
    Timer,
    Readable(u64),
}

type Order = Box<dyn FnOnce(&mut Outbox) + Send>;

/// Tells the test everything, does what the test orders, and answers frames if it shall.
struct Probe {
    told: Sender<Told>,
    orders: Receiver<Order>,
    echo: bool,
}

impl Node for Probe {
    fn on_accepted(&mut self, _: u64, conn: Conn, peer: Peer, out: &mut Outbox) {
        assert_eq!(out.peer(conn), Some(peer));
        let _ = self.told.send(Told::Accepted(conn, peer));
    }

    fn on_connected(&mut self, _: u64, conn: Conn, _: &mut Outbox) {
        let _ = self.told.send(Told::Connected(conn));
    }

    fn on_frame(&mut self, _: u64, conn: Conn, frame: Bytes, out: &mut Outbox) {
        if self.echo {
            out.send(conn, frame.clone());
        }
        let _ = self.told.send(Told::Frame(conn, frame));
    }

    fn on_closed(&mut self, _: u64, conn: Conn, reason: CloseReason, out: &mut Outbox) {
        assert!(!out.is_open(conn));
        let _ = self.told.send(Told::Closed(conn, reason));
    }

    fn on_wake(&mut self, _: u64, out: &mut Outbox) {
        for order in self.orders.try_iter() {
            order(out);
        }
    }

    fn on_readable(&mut self, _: u64, token: u64, out: &mut Outbox) {
        out.unwatch(token);
        let _ = self.told.send(Told::Readable(token));
    }

    fn on_timer(&mut self, _: u64, _: &mut Outbox) {
        let _ = self.told.send(Told::Timer);
    }
}

/// The test's hold on a probe.
struct Handle {
    told: Receiver<Told>,
    orders: Sender<Order>,
    waker: Option<Waker>,
}

impl Handle {
    fn order(&self, order: impl FnOnce(&mut Outbox) + Send + 'static) {
        self.orders.send(Box::new(order)).expect("the probe lives");
        self.waker.as_ref().expect("the probe was added").wake();
    }

    fn next(&self) -> Told {
        self.told.recv_timeout(PATIENCE).expect("the probe is told something in time")
    }

    /// Skips what comes before something that `pick` takes.
    fn wait<T>(&self, mut pick: impl FnMut(Told) -> Option<T>) -> T {
        loop {
            if let Some(found) = pick(self.next()) {
                return found;
            }
        }
    }

    fn dial(&self, address: &str, server: &KeyPair, keys: &KeyPair) -> Conn {
        let (send, receive) = channel();
        let spec = DialSpec { address: address.to_string(), server_key: server.public, keys: keys.clone() };
        self.order(move |out| send.send(out.dial(&spec)).unwrap());
        receive.recv_timeout(PATIENCE).expect("the probe dials")
    }

    fn send(&self, conn: Conn, frame: &'static [u8]) {
        self.order(move |out| out.send(conn, Bytes::from_static(frame)));
    }

    fn closed(&self) -> (Conn, CloseReason) {
        self.wait(|told| if let Told::Closed(conn, reason) = told { Some((conn, reason)) } else { None })
    }

    fn frame(&self) -> (Conn, Bytes) {
        self.wait(|told| if let Told::Frame(conn, frame) = told { Some((conn, frame)) } else { None })
    }
}

fn probe(reactor: &mut Reactor, echo: bool) -> (NodeId, Handle) {
    let (told, hear) = channel();
    let (orders, obey) = channel();
    let node = reactor.add(Box::new(Probe { told, orders: obey, echo }));
    (node, Handle { told: hear, orders, waker: Some(reactor.waker(node)) })
}

/// A reactor on a thread of its own, which ends when this is dropped.
struct Running {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.order(Outbox::stop);
        self.thread.take().expect("dropped once").join().expect("the reactor ended well");
    }
}

fn run(mut reactor: Reactor, handle: Handle) -> Running {
    let thread = std::thread::spawn(move || reactor.run().unwrap());
    Running { handle, thread: Some(thread) }
}

struct Server {
    running: Running,
    address: String,
    keys: KeyPair,
    allow: AllowList,
}

fn server(echo: bool) -> Server {
    let (keys, allow) = (KeyPair::generate().unwrap(), AllowList::new());
    let mut reactor = Reactor::new().unwrap();
    let (node, handle) = probe(&mut reactor, echo);
    let spec = ListenSpec {
        hosts: vec!["127.0.0.1".into()],
        ports: Ports::any(),
        keys: keys.clone(),
        allow: allow.clone(),
    };
    let address = reactor.listen(node, spec).unwrap().remove(0);
    Server { running: run(reactor, handle), address, keys, allow }
}

fn client() -> Running {
    let mut reactor = Reactor::new().unwrap();
    let (_, handle) = probe(&mut reactor, false);
    run(reactor, handle)
}

#[test]
fn frames_travel_both_ways_with_the_peer_known_by_its_key() {
    let (server, client) = (server(true), client());
    let keys = KeyPair::generate().unwrap();
    server.allow.insert(keys.public, 42);
    let conn = client.handle.dial(&server.address, &server.keys, &keys);
    client.handle.send(conn, b"hello");
    client.handle.send(conn, b"");
    assert_eq!(client.handle.next(), Told::Connected(conn));
    assert_eq!(client.handle.next(), Told::Frame(conn, Bytes::from_static(b"hello")));
    assert_eq!(client.handle.next(), Told::Frame(conn, Bytes::new()));
    let Told::Accepted(accepted, peer) = server.running.handle.next() else { panic!("first comes the peer") };
    assert_eq!(peer, Peer { key: keys.public, tag: 42 });
    assert_eq!(server.running.handle.next(), Told::Frame(accepted, Bytes::from_static(b"hello")));
}

#[test]
fn ipv6_addresses_and_host_names_work_as_well() {
    let (client, keys) = (client(), KeyPair::generate().unwrap());
    let server_keys = KeyPair::generate().unwrap();
    let mut reactor = Reactor::new().unwrap();
    let (node, handle) = probe(&mut reactor, true);
    let allow = AllowList::new();
    allow.insert(keys.public, 0);
    let mut dialled = Vec::new();
    for (host, named) in [("::1", "[::1]"), ("127.0.0.1", "localhost")] {
        let spec = ListenSpec {
            hosts: vec![host.to_string()],
            ports: Ports::any(),
            keys: server_keys.clone(),
            allow: allow.clone(),
        };
        match reactor.listen(node, spec) {
            Ok(addresses) => dialled.push(format!("{named}:{}", addresses[0].rsplit_once(':').unwrap().1)),
            Err(error) => eprintln!("SKIPPED: no {host} on this machine: {error}"),
        }
    }
    let _running = run(reactor, handle);
    for address in dialled {
        let conn = client.handle.dial(&address, &server_keys, &keys);
        client.handle.send(conn, b"hello");
        assert_eq!(client.handle.frame(), (conn, Bytes::from_static(b"hello")), "{address}");
    }
}

#[test]
fn a_frame_of_the_largest_size_passes_and_a_larger_one_closes() {
    let (server, client) = (server(true), client());
    let keys = KeyPair::generate().unwrap();
    server.allow.insert(keys.public, 0);
    let conn = client.handle.dial(&server.address, &server.keys, &keys);
    let big = Bytes::from(vec![7u8; pf_transport::limits::FRAME_BYTES_MAX]);
    let sent = big.clone();
    client.handle.order(move |out| out.send(conn, sent));
    assert!(client.handle.frame() == (conn, big), "the largest frame came back whole");
    let bytes = pf_transport::limits::FRAME_BYTES_MAX + 1;
    client.handle.order(move |out| out.send(conn, Bytes::from(vec![0u8; bytes])));
    assert_eq!(client.handle.closed(), (conn, CloseReason::FrameTooLarge { bytes }));
}

#[test]
fn a_key_that_is_not_allowed_delivers_nothing_and_is_told() {
    let (server, client) = (server(true), client());
    let keys = KeyPair::generate().unwrap();
    let conn = client.handle.dial(&server.address, &server.keys, &keys);
    client.handle.send(conn, b"let me in");
    assert_eq!(client.handle.closed(), (conn, CloseReason::Refused { address: server.address.clone() }));
    // The next peer, which is allowed, is the first that the server hears of.
    server.allow.insert(keys.public, 1);
    let conn = client.handle.dial(&server.address, &server.keys, &keys);
    client.handle.send(conn, b"now");
    assert!(matches!(server.running.handle.next(), Told::Accepted(_, Peer { tag: 1, .. })));
    assert_eq!(server.running.handle.frame().1, Bytes::from_static(b"now"));
}

#[test]
fn a_server_with_another_key_never_answers_and_the_dialler_has_its_own_deadline() {
    let (server, client) = (server(true), client());
    let (keys, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    server.allow.insert(keys.public, 0);
    let conn = client.handle.dial(&server.address, &other, &keys);
    client.handle.order(move |out| {
        out.send(conn, Bytes::from_static(b"hello"));
        out.set_timer(pf_transport::now_us() + 50_000);
    });
    let told = client.handle.next();
    let is_end = matches!(
        told,
        Told::Timer | Told::Closed(_, CloseReason::HandshakeFailed { .. } | CloseReason::PeerGone)
    );
    assert!(is_end, "{told:?}");
    assert_eq!(
        server.running.handle.told.recv_timeout(Duration::from_millis(1)),
        Err(RecvTimeoutError::Timeout)
    );
}

#[test]
fn a_dial_given_up_in_the_middle_of_its_handshake_holds_up_nothing() {
    let (server, client) = (server(true), client());
    let keys = KeyPair::generate().unwrap();
    server.allow.insert(keys.public, 1);
    for round in 0..400 {
        let conn = client.handle.dial(&server.address, &server.keys, &keys);
        // Whenever the handshake ends, some rounds give up just before.
        let began = std::time::Instant::now();
        while began.elapsed() < std::time::Duration::from_micros(round * 10) {
            std::hint::spin_loop();
        }
        client.handle.order(move |out| out.close(conn));
    }
    let conn = client.handle.dial(&server.address, &server.keys, &keys);
    client.handle.send(conn, b"still here");
    assert_eq!(client.handle.frame(), (conn, Bytes::from_static(b"still here")));
}

#[test]
fn a_removed_key_is_cut_and_refused_when_it_returns() {
    let (server, client) = (server(true), client());
    let keys = KeyPair::generate().unwrap();
    server.allow.insert(keys.public, 0);
    let conn = client.handle.dial(&server.address, &server.keys, &keys);
    client.handle.send(conn, b"one");
    let (accepted, _) = server.running.handle.frame();
    assert_eq!(client.handle.frame().0, conn);

    server.allow.remove(&keys.public);
    assert_eq!(server.running.handle.closed(), (accepted, CloseReason::KeyRemoved));
    client.handle.send(conn, b"two, on the old connection");
    let conn = client.handle.dial(&server.address, &server.keys, &keys);
    client.handle.send(conn, b"three, on a new one");
    assert!(matches!(client.handle.closed(), (_, CloseReason::Refused { .. })));
    assert!(server.running.handle.told.try_recv().is_err(), "nothing of it was delivered");
}

#[test]
fn nobody_listening_is_told_at_once() {
    let client = client();
    let keys = KeyPair::generate().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let conn = client.handle.dial(&free.to_string(), &keys, &keys);
    assert_eq!(client.handle.closed(), (conn, CloseReason::ConnectFailed { address: free.to_string() }));
    let conn = client.handle.dial("no port here", &keys, &keys);
    assert!(matches!(client.handle.closed(), (closed, CloseReason::CannotDial { .. }) if closed == conn));
}

#[test]
fn each_end_learns_that_the_other_is_gone() {
    let server = server(true);
    let keys = KeyPair::generate().unwrap();
    server.allow.insert(keys.public, 0);
    let gone = client();
    let conn = gone.handle.dial(&server.address, &server.keys, &keys);
    gone.handle.send(conn, b"hello");
    let (accepted, _) = server.running.handle.frame();
    drop(gone);
    // An accepted peer is missed when something is sent to it.
    let deadline = Instant::now() + PATIENCE;
    loop {
        server.running.handle.send(accepted, b"are you there");
        match server.running.handle.told.recv_timeout(Duration::from_millis(10)) {
            Ok(told) => break assert_eq!(told, Told::Closed(accepted, CloseReason::PeerGone)),
            Err(_) => assert!(Instant::now() < deadline, "the dead peer was never missed"),
        }
    }

    let client = client();
    let conn = client.handle.dial(&server.address, &server.keys, &keys);
    client.handle.send(conn, b"hello");
    assert_eq!(client.handle.frame().0, conn);
    drop(server);
    assert_eq!(client.handle.closed(), (conn, CloseReason::PeerGone));
}

#[test]
fn a_peer_that_does_not_read_for_a_while_loses_nothing() {
    let (server, client) = (server(false), client());
    let keys = KeyPair::generate().unwrap();
    server.allow.insert(keys.public, 0);
    let conn = client.handle.dial(&server.address, &server.keys, &keys);
    client.handle.send(conn, b"hello");
    let (accepted, _) = server.running.handle.frame();
    // The client's thread is busy, so nobody reads; the server sends what would overflow small buffers.
    let (release, released) = channel::<()>();
    client.handle.order(move |_| _ = released.recv_timeout(PATIENCE));
    const FRAMES: u32 = 2_000;
    server.running.handle.order(move |out| {
        for n in 0..FRAMES {
            let mut frame = vec![0u8; 8 << 10];
            frame[..4].copy_from_slice(&n.to_le_bytes());
            out.send(accepted, Bytes::from(frame));
        }
    });
    let (sent, all_sent) = channel();
    server.running.handle.order(move |_| sent.send(()).unwrap());
    all_sent.recv_timeout(PATIENCE).unwrap();
    release.send(()).unwrap();
    for n in 0..FRAMES {
        let (_, frame) = client.handle.frame();
        assert_eq!(frame[..4], n.to_le_bytes());
    }
}

#[test]
fn a_crowd_that_comes_at_once_is_let_in_and_answered() {
    const CROWD: usize = 400;
    let (server, crowd) = (server(true), client());
    let keys: Vec<KeyPair> = (0..CROWD).map(|_| KeyPair::generate().unwrap()).collect();
    for (keys, tag) in keys.iter().zip(0..) {
        server.allow.insert(keys.public, tag);
    }
    let (address, server_key) = (server.address.clone(), server.keys.public);
    crowd.handle.order(move |out| {
        for keys in keys {
            let conn = out.dial(&DialSpec { address: address.clone(), server_key, keys });
            out.send(conn, Bytes::from_static(b"here"));
        }
    });
    let mut answered = std::collections::BTreeSet::new();
    while answered.len() < CROWD {
        match crowd.handle.next() {
            Told::Frame(conn, _) => assert!(answered.insert(conn), "answered once"),
            Told::Connected(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let mut tags = std::collections::BTreeSet::new();
    while tags.len() < CROWD {
        tags.extend(server.running.handle.wait(|told| match told {
            Told::Accepted(_, peer) => Some(Some(peer.tag)),
            _ => Some(None),
        }));
    }
}

#[test]
fn garbage_on_the_port_disturbs_nobody() {
    let (server, client) = (server(true), client());
    let keys = KeyPair::generate().unwrap();
    server.allow.insert(keys.public, 0);
    let conn = client.handle.dial(&server.address, &server.keys, &keys);
    client.handle.send(conn, b"before");
    assert_eq!(client.handle.frame().1, Bytes::from_static(b"before"));
    let mut half_open = Vec::new();
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3], b""]
    {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        // The server may hang up in the middle.
        let _ = stream.write_all(garbage);
        half_open.push(stream);
    }
    client.handle.send(conn, b"after");
    assert_eq!(client.handle.frame().1, Bytes::from_static(b"after"));
    let wrong = std::iter::from_fn(|| server.running.handle.told.try_recv().ok()).filter(
        |told| matches!(told, Told::Frame(_, frame) if &frame[..] != b"before" && &frame[..] != b"after"),
    );
    assert_eq!(wrong.count(), 0);
}

/// Peers that are allowed but speak another dialect: no CURVE, messages of several parts, names of their own choice.
#[test]
fn foreign_messages_are_dropped_and_plain_clients_get_nowhere() {
    let server = server(true);
    let keys = KeyPair::generate().unwrap();
    server.allow.insert(keys.public, 0);
    let context = zmq::Context::new();
    let endpoint = format!("tcp://{}", server.address);

    let plain = context.socket(zmq::DEALER).unwrap();
    plain.set_linger(0).unwrap();
    plain.connect(&endpoint).unwrap();
    plain.send("no keys", 0).unwrap();

    let secret = zmq::z85_decode(&keys.secret_z85()).unwrap();
    let curve = |name: Option<&[u8]>| {
        let socket = context.socket(zmq::DEALER).unwrap();
        socket.set_linger(0).unwrap();
        socket.set_curve_serverkey(&server.keys.public.0).unwrap();
        socket.set_curve_publickey(&keys.public.0).unwrap();
        socket.set_curve_secretkey(&secret).unwrap();
        if let Some(name) = name {
            socket.set_identity(name).unwrap();
        }
        socket.connect(&endpoint).unwrap();
        socket
    };
    let named = curve(Some(b"relay"));
    named.send("I chose my own name", 0).unwrap();
    let usual = curve(None);
    usual.send_multipart(["two", "parts"], 0).unwrap();
    usual.send("one part", 0).unwrap();
    assert!(matches!(server.running.handle.next(), Told::Accepted(..)));
    assert_eq!(server.running.handle.frame().1, Bytes::from_static(b"one part"));
    assert!(server.running.handle.told.try_recv().is_err());
}

#[test]
fn a_pair_moves_frames_in_order_and_closes_as_one() {
    let mut reactor = Reactor::new().unwrap();
    let (a, left) = probe(&mut reactor, false);
    let (b, right) = probe(&mut reactor, true);
    let (left_end, right_end) = reactor.pair(a, b);
    let running = run(reactor, left);
    let left = &running.handle;
    assert_eq!((left.next(), right.next()), (Told::Connected(left_end), Told::Connected(right_end)));
    left.order(move |out| {
        (0..5_000u32).for_each(|n| out.send(left_end, Bytes::from(n.to_le_bytes().to_vec())))
    });
    for n in 0..5_000u32 {
        let expected = Bytes::from(n.to_le_bytes().to_vec());
        assert_eq!(right.next(), Told::Frame(right_end, expected.clone()));
        assert_eq!(left.next(), Told::Frame(left_end, expected));
    }
    left.order(move |out| {
        out.send(left_end, Bytes::from_static(b"bye"));
        out.close(left_end);
    });
    assert_eq!(right.next(), Told::Frame(right_end, Bytes::from_static(b"bye")));
    assert_eq!(right.next(), Told::Closed(right_end, CloseReason::PeerGone));
}

#[test]
fn a_waker_wakes_a_sleeping_reactor_as_often_as_it_is_called() {
    let client = client();
    for n in 0..2_000u64 {
        let (send, receive) = channel();
        client.handle.order(move |_| send.send(n).unwrap());
        assert_eq!(receive.recv_timeout(PATIENCE), Ok(n));
    }
}

#[test]
fn a_watched_descriptor_is_reported_until_unwatched() {
    use std::os::fd::AsRawFd;
    let client = client();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let fd = reader.as_raw_fd();
    client.handle.order(move |out| out.watch(fd, 7));
    writer.write_all(b"x").unwrap();
    assert_eq!(client.handle.next(), Told::Readable(7));
}

#[test]
fn a_port_range_is_tried_in_order_and_its_end_is_an_error() {
    let (keys, allow) = (KeyPair::generate().unwrap(), AllowList::new());
    let mut reactor = Reactor::new().unwrap();
    let (node, _handle) = probe(&mut reactor, false);
    let mut listen = |ports: Ports| {
        let hosts = vec!["127.0.0.1".to_string(), "127.0.0.2".to_string()];
        let addresses =
            reactor.listen(node, ListenSpec { hosts, ports, keys: keys.clone(), allow: allow.clone() });
        addresses.map(|all| {
            all.iter().map(|address| address.rsplit_once(':').unwrap().1.parse().unwrap()).collect()
        })
    };
    let first: Vec<u16> = listen(Ports::any()).unwrap();
    assert_eq!(first[0], first[1], "one port on all interfaces");
    let error = listen(Ports::only(first[0])).unwrap_err().to_string();
    assert!(error.contains(&format!("ports {0}-{0}", first[0])), "{error}");
    if let Some(next) = first[0].checked_add(20) {
        let second: Vec<u16> = listen(Ports { first: first[0], last: next }).unwrap();
        assert!(second[0] > first[0] && second[0] <= next);
    }
}
