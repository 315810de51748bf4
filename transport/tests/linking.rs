//! The promises of the local `zmq-sys`: CURVE is in, the rest is out, and a binary with it needs only glibc.

use std::collections::BTreeSet;
use std::process::Command;

#[test]
fn libzmq_has_curve_and_nothing_else_that_we_do_not_use() {
    assert_eq!(zmq::version(), (4, 3, 5));
    assert_eq!(zmq::has("curve"), Some(true));
    // WebSocket is in, since zeromq-src compiles it always; no socket of ours binds or dials `ws://`.
    for absent in ["gssapi", "pgm", "norm", "tipc", "vmci", "draft", "WSS"] {
        assert_eq!(zmq::has(absent), Some(false), "libzmq was built with {absent}");
    }
    zmq::CurveKeyPair::new().expect("a CURVE key pair");
}

/// Reads the NEEDED entries of this very test binary, which links libzmq, libsodium and libstdc++ as `pf` does.
#[test]
fn a_linked_binary_needs_no_library_but_glibc() {
    let context = zmq::Context::new();
    context.socket(zmq::ROUTER).expect("libzmq is really linked");
    let own = std::env::current_exe().expect("path of this test binary");
    let output =
        Command::new("readelf").arg("-d").arg(&own).output().expect("readelf, of binutils, is there");
    let text = String::from_utf8_lossy(&output.stdout);
    let needed: BTreeSet<&str> = text
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split(['[', ']']).nth(1))
        .collect();
    assert!(needed.contains("libc.so.6"), "readelf was understood: {text}");
    let glibc = |name: &&str| {
        ["libc.so", "libm.so", "libpthread.so", "libdl.so", "librt.so", "ld-linux", "libgcc_s.so"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    let foreign: Vec<_> = needed.iter().copied().filter(|name| !glibc(name)).collect();
    assert!(foreign.is_empty(), "shared libraries beside glibc: {foreign:?}");
}

#[test]
fn one_context_has_room_for_many_sockets() {
    pf_transport::raise_file_limit().expect("the limit of open files");
    let context = zmq::Context::new();
    let sockets: Vec<zmq::Socket> =
        (0..1_100).map(|_| context.socket(zmq::PAIR).expect("a socket")).collect();
    assert_eq!(sockets.len(), 1_100);
}
