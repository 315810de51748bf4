//! Answers libzmq's question whether a client key may connect (ZAP, ZeroMQ RFC 27), inside the reactor's loop.

use crate::allow::AllowList;
use crate::conns::retry;
use crate::error::TransportError;
use crate::keys::PublicKey;

/// The socket that libzmq asks. It must exist before the first listener: without it CURVE lets everybody in.
pub(crate) fn zap_socket(context: &zmq::Context) -> Result<zmq::Socket, TransportError> {
    let socket = context.socket(zmq::REP).map_err(TransportError::zmq("make the ZAP socket"))?;
    socket.set_linger(0).map_err(TransportError::zmq("set up the ZAP socket"))?;
    socket.bind("inproc://zeromq.zap.01").map_err(TransportError::zmq("bind the ZAP socket"))?;
    Ok(socket)
}

/// The answer to one question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The key may connect.
    Allowed(PublicKey),
    /// The key is not on the list, or there is none.
    Refused,
    /// Out of file descriptors: the client is dropped without a word and may try again.
    Later,
}

/// Answers one waiting question. `list` finds the allow list of a listener by its ZAP domain; None when nobody asks.
pub(crate) fn answer_one<'a>(
    socket: &zmq::Socket,
    full: bool,
    list: impl FnOnce(&str) -> Option<&'a AllowList>,
) -> Option<(Verdict, String)> {
    let parts = retry(|| socket.recv_multipart(zmq::DONTWAIT)).ok()?;
    let (verdict, address) = judge(&parts, full, list);
    let request_id = parts.get(1).map_or(&b""[..], Vec::as_slice);
    let (code, text, user) = match &verdict {
        Verdict::Allowed(key) => ("200", "OK", key.to_z85()),
        Verdict::Refused => ("400", "key not allowed", String::new()),
        Verdict::Later => ("300", "out of file descriptors", String::new()),
    };
    let reply = [&b"1.0"[..], request_id, code.as_bytes(), text.as_bytes(), user.as_bytes(), b""];
    // If libzmq is gone meanwhile, so is the question.
    let _ = retry(|| socket.send_multipart(reply, zmq::DONTWAIT));
    Some((verdict, address))
}

fn judge<'a>(
    parts: &[Vec<u8>],
    full: bool,
    list: impl FnOnce(&str) -> Option<&'a AllowList>,
) -> (Verdict, String) {
    let [version, _, domain, address, _, mechanism, key] = parts else {
        return (Verdict::Refused, String::new());
    };
    let address = String::from_utf8_lossy(address).into_owned();
    let key: Option<PublicKey> = key.as_slice().try_into().ok().map(PublicKey);
    let list = std::str::from_utf8(domain).ok().and_then(list);
    let verdict = match (key, list) {
        (Some(key), Some(list)) if version == b"1.0" && mechanism == b"CURVE" && list.contains(&key) => {
            if full {
                Verdict::Later
            } else {
                Verdict::Allowed(key)
            }
        }
        _ => Verdict::Refused,
    };
    (verdict, address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(domain: &str, mechanism: &str, key: &[u8]) -> Vec<Vec<u8>> {
        [b"1.0", b"1" as &[u8], domain.as_bytes(), b"10.0.0.1", b"", mechanism.as_bytes(), key]
            .iter()
            .map(|part| part.to_vec())
            .collect()
    }

    #[test]
    fn only_a_listed_curve_key_of_the_right_listener_is_allowed() {
        let allow = AllowList::new();
        let key = PublicKey([9; 32]);
        allow.insert(key, 1);
        let judge =
            |parts: &[Vec<u8>], full| judge(parts, full, |domain| (domain == "pf0").then_some(&allow)).0;
        assert_eq!(judge(&question("pf0", "CURVE", &key.0), false), Verdict::Allowed(key));
        assert_eq!(judge(&question("pf0", "CURVE", &key.0), true), Verdict::Later);
        assert_eq!(judge(&question("pf1", "CURVE", &key.0), false), Verdict::Refused);
        assert_eq!(judge(&question("pf0", "NULL", &key.0), false), Verdict::Refused);
        assert_eq!(judge(&question("pf0", "CURVE", &[8; 32]), false), Verdict::Refused);
        assert_eq!(judge(&question("pf0", "CURVE", b"short"), false), Verdict::Refused);
        assert_eq!(judge(&[], false), Verdict::Refused);
    }
}
