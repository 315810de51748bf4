//! Who may call, and what becomes of bad input. Everything over real sockets.

use crate::common::client::Client;
use crate::common::{RelayIs, World, job, key};
use pf_broker::{HttpServer, Request};
use pf_protocol::job::content_hash;
use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

/// A TLS client that pins the broker's certificate.
fn tls_client(http: &HttpServer) -> Client {
    let (address, identity) = http.tls().unwrap();
    tls_connect(address, &identity.certificate_pem)
}

fn tls_connect(address: std::net::SocketAddr, pinned_pem: &str) -> Client {
    use rustls_pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_slice(pinned_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let session = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    Client::over(Box::new(rustls::StreamOwned::new(session, stream)))
}

fn tls_world(root: &std::path::Path) -> World {
    World::start_with(root, RelayIs::Idle, Some("127.0.0.1:0".into()))
}

#[test]
fn another_user_is_refused_even_where_the_folder_lets_them_in() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let world = World::start(root.path(), RelayIs::Absent);
    let socket = world.http.as_ref().unwrap().socket_path().to_path_buf();
    // Modes are the first wall; the kernel's word on the peer is the second, so take the first away.
    use std::os::unix::fs::PermissionsExt;
    for path in [root.path(), socket.parent().unwrap(), &socket] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    // Only the calling thread changes its user: libc's own call would change the whole process.
    let answered_to = |uid: u32| {
        let socket = socket.clone();
        let probe = move || {
            let changed = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, uid, uid, uid) };
            assert_eq!(changed, 0);
            let mut client = Client::unix(&socket);
            client.send("GET", "/v1/status", &[], b"");
            client.answer().map(|answer| answer.status).ok()
        };
        std::thread::spawn(probe).join().unwrap()
    };
    assert_eq!(answered_to(4711), None);
    assert_eq!(answered_to(0), Some(200));
    world.client().call("GET", "/v1/status", b"").ok();
}

#[test]
fn from_elsewhere_only_tokens_open_and_only_to_what_is_theirs() {
    let root = tempfile::tempdir().unwrap();
    let world = tls_world(root.path());
    let http = world.http.as_ref().unwrap();
    let mut local = world.client();
    let mine = local.call("PUT", &format!("/v1/jobs/{}", key(1)), &job(1, false)).ok()["job"].clone();
    let token =
        local.call("POST", "/v1/tokens", br#"{"name":"laptop"}"#).ok()["token"].as_str().unwrap().to_owned();

    let mut remote = tls_client(http);
    assert_eq!(remote.call("GET", "/v1/status", b"").code(), (401, "unauthorized".into()));
    remote.token = Some(token.replace(char::is_numeric, "0"));
    assert_eq!(remote.call("GET", "/v1/status", b"").code().0, 401);
    remote.token = Some(token.clone());
    remote.call("GET", "/v1/status", b"").ok();
    remote.call("GET", &format!("/v1/jobs/{mine}"), b"").ok();
    // Ending the broker is for who has its socket.
    assert_eq!(remote.call("POST", "/v1/shutdown", b"").code().0, 403);

    // A job of another owner is not shown; requests of handlers and of this call take the same way through the core.
    let stranger = pf_broker::Caller { owner: pf_protocol::ids::OwnerId(4711), is_broker_owner: false };
    let job: pf_protocol::ids::JobId = serde_json::from_value(mine).unwrap();
    for request in [
        Request::Job { job, wait_until: None },
        Request::Close { job },
        Request::Forget { job },
        Request::Task { job, label: 0 },
    ] {
        let error = world.handle.request_blocking(stranger, request).unwrap_err();
        assert!([403, 404].contains(&error.status.as_u16()), "{error:?}");
    }

    local.call("DELETE", "/v1/tokens/laptop", b"").ok();
    assert_eq!(remote.call("GET", "/v1/status", b"").code().0, 401);
}

#[test]
fn the_token_of_a_second_owner_opens_only_what_is_theirs() {
    let root = tempfile::tempdir().unwrap();
    let world = tls_world(root.path());
    let mut local = world.client();
    let mine = local.call("PUT", &format!("/v1/jobs/{}", key(1)), &job(1, true)).ok()["job"].clone();
    let payload = vec![7u8; 300_000];
    let large = format!("/v1/jobs/{mine}/payloads/{}", content_hash(&payload));
    local.call("PUT", &large, &payload).ok();
    local.call("POST", "/v1/tokens", br#"{"name":"laptop"}"#).ok();

    // Owners are made by no call yet: the core keeps a token of one all the same.
    let second = pf_broker::Caller { owner: pf_protocol::ids::OwnerId(2), is_broker_owner: false };
    let token = format!("pft_{}", "0a".repeat(32));
    let add = Request::AddToken { name: "theirs".into(), hash: content_hash(token.as_bytes()) };
    world.handle.request_blocking(second, add).unwrap();
    let mut remote = tls_client(world.http.as_ref().unwrap());
    remote.token = Some(token);
    assert_eq!(remote.call("GET", "/v1/jobs", b"").ok()["jobs"], serde_json::json!([]));
    assert_eq!(remote.call("GET", "/v1/functions", b"").ok()["functions"], serde_json::json!([]));
    let unknown = (404, "unknown_job".to_string());
    for (method, path) in [
        ("GET", format!("/v1/jobs/{mine}")),
        ("GET", format!("/v1/jobs/{mine}/tasks")),
        ("GET", format!("/v1/jobs/{mine}/tasks/0/value")),
        ("GET", format!("/v1/jobs/{mine}/tasks/0/log")),
        ("GET", format!("/v1/jobs/{mine}/explain")),
        ("GET", format!("/v1/outcomes?job={mine}")),
        ("GET", large.clone()),
        ("POST", format!("/v1/jobs/{mine}/close")),
        ("POST", format!("/v1/jobs/{mine}/cancel")),
        ("POST", format!("/v1/jobs/{mine}/retry")),
        ("DELETE", format!("/v1/jobs/{mine}")),
    ] {
        assert_eq!(remote.call(method, &path, b"").code(), unknown, "{method} {path}");
    }
    assert_eq!(remote.call("PUT", &large, &payload).code(), unknown);
    for verb in ["pause", "resume", "stop"] {
        assert_eq!(remote.call("POST", &format!("/v1/endpoints/local/{verb}"), b"").code().0, 403, "{verb}");
    }
    assert_eq!(remote.call("DELETE", "/v1/endpoints/local", b"").code().0, 403);
    assert_eq!(remote.call("POST", "/v1/shutdown", b"").code().0, 403);
    // Tokens of one owner are not another's to see or to revoke.
    let names = remote.call("GET", "/v1/tokens", b"").ok();
    assert_eq!(names["tokens"].as_array().map(Vec::len), Some(1), "{names}");
    assert_eq!(remote.call("DELETE", "/v1/tokens/laptop", b"").code().0, 404);
    // An endpoint is for its owner alone.
    assert_eq!(remote.call("GET", "/v1/endpoints", b"").ok()["endpoints"], serde_json::json!([]));
    assert_eq!(remote.call("GET", "/v1/endpoints/local", b"").code().0, 403);
    let nowhere = remote.call("PUT", &format!("/v1/jobs/{}", key(1)), &job(2, false)).code();
    assert_eq!(nowhere, (404, "unknown_endpoint".into()));
    remote.call("PUT", "/v1/endpoints/theirs", b"{}").ok();
    // The same key of two owners is two jobs.
    let theirs = remote.call("PUT", &format!("/v1/jobs/{}", key(1)), &job(2, false)).ok();
    assert_eq!((theirs["repeated"].clone(), theirs["job"] == mine), (false.into(), false));
    assert_eq!(remote.call("GET", "/v1/jobs", b"").ok()["jobs"].as_array().map(Vec::len), Some(1));
}

#[test]
fn another_certificate_than_the_pinned_one_is_not_spoken_to() {
    let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let world = tls_world(root.path());
    let stranger = pf_broker::Identity::load_or_generate(other.path(), &["localhost".into()]).unwrap();
    let (address, _) = world.http.as_ref().unwrap().tls().unwrap();
    let mut client = tls_connect(address, &stranger.certificate_pem);
    client.send("GET", "/v1/status", &[], b"");
    assert!(client.answer().is_err());
}

#[test]
fn old_clients_are_told_so() {
    let root = tempfile::tempdir().unwrap();
    let world = World::start(root.path(), RelayIs::Absent);
    let mut client = world.client();
    for version in ["2", "0", "x"] {
        let answer = client.call_with("GET", "/v1/limits", &[("X-Pilotfish-Api", version)], b"");
        assert_eq!(answer.code(), (426, "version".into()));
        assert!(answer.json()["hint"].is_string());
    }
    client.call("GET", "/v1/limits", b"").ok();
}

#[test]
fn garbage_and_truncated_requests_end_their_connection_only() {
    let root = tempfile::tempdir().unwrap();
    let world = World::start(root.path(), RelayIs::Absent);
    let mut good = world.client();
    let long_head = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    let many_headers = format!("GET /v1/limits HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(200));
    for garbage in [
        &b"\0\x01\x02\xff\xfe garbage\r\n\r\n"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"PUT /v1/jobs/x HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"PUT /v1/jobs/x HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        long_head.as_bytes(),
        many_headers.as_bytes(),
    ] {
        let mut client = world.client();
        // The broker may close while we are still sending.
        let _ = client.send_raw(garbage);
        if let Ok(answer) = client.answer() {
            assert!((400..500).contains(&answer.status), "{}", answer.head);
        }
        good.call("GET", "/v1/limits", b"").ok();
    }
    let whole = format!("PUT /v1/jobs/{} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{\"co", key(1))
        .into_bytes();
    for cut in (0..whole.len()).step_by(7) {
        let mut client = world.client();
        client.send_raw(&whole[..cut]).unwrap();
        drop(client);
    }
    assert_eq!(good.call("GET", "/v1/jobs", b"").ok()["jobs"], serde_json::json!([]));
}

#[test]
fn bodies_over_the_limit_are_refused_before_they_are_read() {
    let root = tempfile::tempdir().unwrap();
    let world = World::start(root.path(), RelayIs::Absent);
    let mut client = world.client();
    let head = format!("PUT /v1/jobs/{} HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n", key(1));
    client.send_raw(head.as_bytes()).unwrap();
    assert_eq!(client.answer().unwrap().code(), (413, "too_large".into()));
    // Without a told length the limit counts what comes.
    let mut client = world.client();
    client.send_raw(b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 0x10_0000], b"\r\n"].concat();
    for _ in 0..5 {
        if client.send_raw(&chunk).is_err() {
            break;
        }
    }
    if let Ok(answer) = client.answer() {
        assert_eq!(answer.code(), (413, "too_large".into()));
    }
    world.client().call("GET", "/v1/limits", b"").ok();
}

#[test]
fn bad_requests_name_what_is_wrong() {
    let root = tempfile::tempdir().unwrap();
    let world = World::start(root.path(), RelayIs::Absent);
    let mut client = world.client();
    let open = client.call("PUT", &format!("/v1/jobs/{}", key(1)), &job(0, true)).ok()["job"].clone();
    let tasks = format!("/v1/jobs/{open}/tasks?first=0");
    let columns: &[(&str, &str)] = &[("Content-Type", "application/vnd.pilotfish.tasks")];
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [u8], u16);
    let cases: &[Case<'_>] = &[
        ("PUT", "/v1/jobs/nokey", &[], b"{}", 400),
        ("PUT", "/v1/jobs/00000000000000000000000000000001x", &[], b"{}", 400),
        ("PUT", "/v1/jobs/00000000000000000000000000000002", &[], b"{\"count\":", 400),
        ("PUT", "/v1/jobs/00000000000000000000000000000002", &[], br#"{"count":2,"items":["a"]}"#, 400),
        ("GET", "/v1/jobs/j99", &[], b"", 404),
        ("GET", "/v1/jobs/x", &[], b"", 400),
        ("GET", "/v1/jobs/j1?wait=-1", &[], b"", 400),
        ("GET", "/v1/jobs/j1?wait=soon", &[], b"", 400),
        ("GET", "/v1/jobs/%ff", &[], b"", 400),
        ("GET", "/v1/jobs?limit=-1", &[], b"", 400),
        ("GET", "/v1/jobs?state=odd", &[], b"", 400),
        ("GET", "/v1/jobs?label=novalue", &[], b"", 400),
        ("GET", "/v1/outcomes?group=99999999999999999999", &[], b"", 400),
        ("POST", "/v1/jobs/j1/tasks", columns, b"PFT1\0\0\0\0", 400),
        ("POST", &tasks, &[], b"PFT1\0\0\0\0", 415),
        ("POST", &tasks, columns, b"PFT1\x05\0\0\0", 400),
        ("POST", &tasks, columns, b"garbage", 400),
        ("GET", "/v1/outcomes", &[], b"", 400),
        ("GET", "/v1/outcomes?group=1&after=zz", &[], b"", 400),
        ("GET", "/v1/outcomes?group=1&after=1-1", &[], b"", 410),
        ("GET", "/v1/endpoints/nowhere", &[], b"", 404),
        ("POST", "/v1/endpoints/local/dance", &[], b"", 404),
        ("POST", "/v1/endpoints/local/cancel-block", &[], b"{}", 400),
        ("PUT", "/v1/endpoints/x", &[], br#"{"relay_key":"short"}"#, 400),
        ("GET", "/v1/nothing", &[], b"", 404),
        ("PATCH", "/v1/jobs", &[], b"", 404),
    ];
    for (method, path, headers, body, status) in cases {
        let answer = client.call_with(method, path, headers, body);
        assert_eq!(answer.status, *status, "{method} {path}: {}", String::from_utf8_lossy(&answer.body));
        assert!(!answer.json()["message"].as_str().unwrap().is_empty(), "{method} {path}");
    }
}

#[test]
fn a_silent_client_does_not_hold_up_the_end() {
    let root = tempfile::tempdir().unwrap();
    let world = World::start(root.path(), RelayIs::Absent);
    let socket = world.http.as_ref().unwrap().socket_path().to_path_buf();
    let mut silent = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    world.stop();
    assert!(!socket.exists());
    let mut rest = Vec::new();
    assert!(matches!(silent.read_to_end(&mut rest), Ok(0) | Err(_)));
}

/// Relays from other hosts: only a key that an endpoint names comes in, and only for that endpoint.
#[test]
fn a_relay_from_elsewhere_needs_the_key_of_its_endpoint() {
    use pf_broker::{BROKER_OWNER, BrokerConfig, BrokerNode, RelayListen, Reply, listen_for_relays};
    use pf_transport::{DialSpec, KeyPair, Reactor};
    let root = tempfile::tempdir().unwrap();
    let (node, handle) =
        BrokerNode::open(&BrokerConfig::new(root.path().join("log"), "tester", "testhost")).unwrap();
    let allow = node.allow_list();
    let mut reactor = Reactor::new().unwrap();
    let broker = reactor.add(Box::new(node));
    let listen = RelayListen { hosts: vec!["127.0.0.1".into()], port: 0, key_dir: root.path().to_path_buf() };
    let (addresses, server_key) = listen_for_relays(&mut reactor, broker, allow.clone(), &listen).unwrap();
    let (keys, stranger) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let dial = |keys: &KeyPair| DialSpec { address: addresses[0].clone(), server_key, keys: keys.clone() };
    let far = reactor.add(Box::new(crate::common::relay::FakeRelay::dialling("far", dial(&keys))));
    let impostor = reactor.add(Box::new(crate::common::relay::FakeRelay::dialling("near", dial(&keys))));
    let unknown = reactor.add(Box::new(crate::common::relay::FakeRelay::dialling("far", dial(&stranger))));
    assert!(far != impostor && impostor != unknown);
    let put =
        |name: &str, key: &KeyPair| Request::PutEndpoint { name: name.into(), relay_key: Some(key.public.0) };
    let other = KeyPair::generate().unwrap();
    let thread = std::thread::spawn(move || reactor.run().unwrap());
    handle.request_blocking(BROKER_OWNER, put("far", &keys)).unwrap();
    handle.request_blocking(BROKER_OWNER, put("near", &other)).unwrap();
    assert!(allow.contains(&keys.public) && !allow.contains(&stranger.public));
    let state =
        |name: &str| match handle.request_blocking(BROKER_OWNER, Request::Endpoint { name: name.into() }) {
            Ok(Reply::Endpoint(row)) => row.state.clone(),
            other => panic!("{other:?}"),
        };
    crate::common::eventually("the relay", || (state("far") == "connected").then_some(()));
    assert_eq!(state("near"), "absent");
    handle.stop();
    thread.join().unwrap();
    assert_eq!(handle.failure(), None);
}

/// A broker whose folder was taken by another (as after a failed sync) acknowledges nothing more and says why it ends.
#[test]
fn a_broker_that_lost_its_log_ends_without_a_word() {
    let root = tempfile::tempdir().unwrap();
    let world = World::start(root.path(), RelayIs::Absent);
    let mut client = world.client();
    client.call("PUT", &format!("/v1/jobs/{}", key(1)), &job(1, false)).ok();
    std::fs::write(root.path().join("log/epoch-00000099"), "").unwrap();
    let why = crate::common::eventually("the end", || world.handle.failure());
    assert!(!why.is_empty());
    let answer = client.call("PUT", &format!("/v1/jobs/{}", key(2)), &job(1, false));
    assert_eq!(answer.code(), (503, "stopping".into()));
}
