//! Frames between manager and Python worker: `docs/worker-protocol.md`. Pure; the other end is `python/pilotfish/worker.py`.

use bytes::Bytes;
use pf_manager_core::{WorkerAnswer, WorkerTask};
use pf_protocol::job::{Body, JobDef};
use pf_protocol::outcome::{ErrorDetail, OutcomeKind};
use pf_protocol::payload::{LARGE, held, is_large};
use serde::Deserialize;

const VERSION: u8 = 3;
const JOB: u8 = 1;
const TASKS: u8 = 2;
const END: u8 = 3;
const HELLO: u8 = 10;
const ANSWERS: u8 = 11;

/// Largest frame either way.
const FRAME_BYTES_MAX: usize = 16 << 20;

/// Why a worker is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a frame of {0} bytes is over the limit")]
    TooLong(usize),
    #[error("a frame has version {0}, this manager speaks {VERSION}")]
    Version(u8),
    #[error("a frame is of unknown kind {0}")]
    Kind(u8),
    #[error("a frame is cut or garbage")]
    Malformed,
}

/// What a worker says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Hello { python: String, marker: [u8; 16] },
    Answers(Vec<WorkerAnswer>),
}

fn frame(out: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, VERSION, kind]);
    body(out);
    let len = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
}

/// Tells a worker of a job. `files`: what the paths of its large payloads begin with; empty if it may leave none.
pub(crate) fn job(out: &mut Vec<u8>, slot: u32, def: &JobDef, files: &[u8]) {
    let (kind, name, bytes) = match &def.function {
        Some(f) => (f.kind as u8, f.name.as_str(), &f.bytes[..]),
        // The worker will refuse its tasks, with a reason.
        None => (0, "", &[][..]),
    };
    let (chunked, client) = match &def.spec.body {
        Body::Python(python) => {
            (python.chunked, python.client_python.as_deref().and_then(version).unwrap_or((0, 0)))
        }
        Body::Command(_) => (false, (0, 0)),
    };
    let short = |text: &[u8]| text[..text.len().min(usize::from(u16::MAX))].to_vec();
    let (name, files) = (short(name.as_bytes()), short(files));
    frame(out, JOB, |out| {
        out.extend_from_slice(&slot.to_le_bytes());
        out.extend_from_slice(&[kind, u8::from(chunked), client.0, client.1]);
        out.extend_from_slice(&(name.len() as u16).to_le_bytes());
        out.extend_from_slice(&(files.len() as u16).to_le_bytes());
        out.extend_from_slice(&name);
        out.extend_from_slice(&files);
        out.extend_from_slice(bytes);
    });
}

/// `3.11` as numbers.
fn version(text: &str) -> Option<(u8, u8)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Gives a worker tasks.
pub(crate) fn tasks(out: &mut Vec<u8>, tasks: &[WorkerTask]) {
    frame(out, TASKS, |out| {
        out.extend_from_slice(&(tasks.len() as u32).to_le_bytes());
        tasks.iter().for_each(|t| out.extend_from_slice(&t.seq.to_le_bytes()));
        tasks.iter().for_each(|t| out.extend_from_slice(&t.slot.to_le_bytes()));
        let len = |t: &WorkerTask| t.item.len() as u32 | if t.is_large { LARGE } else { 0 };
        tasks.iter().for_each(|t| out.extend_from_slice(&len(t).to_le_bytes()));
        tasks.iter().for_each(|t| out.extend_from_slice(&t.item));
    });
}

/// Lets a worker end.
pub(crate) fn end(out: &mut Vec<u8>) {
    frame(out, END, |_| {});
}

/// Bytes of a permission to start one task, on *control*.
pub(crate) const PERMISSION_BYTES: usize = 8;

/// Lets tasks start.
pub(crate) fn permit(out: &mut Vec<u8>, seqs: impl Iterator<Item = u64>) {
    seqs.for_each(|seq| out.extend_from_slice(&seq.to_le_bytes()));
}

/// The tasks of permissions that were not used.
pub(crate) fn permitted(bytes: &[u8]) -> Vec<u64> {
    let (whole, _) = bytes.as_chunks::<PERMISSION_BYTES>();
    whole.iter().map(|seq| u64::from_le_bytes(*seq)).collect()
}

/// Takes the frames that are whole out of `buffer`.
pub(crate) fn read(buffer: &mut Vec<u8>) -> Result<Vec<Said>, WireError> {
    let mut said = Vec::new();
    let mut at = 0;
    while let Some(len) = buffer.get(at..at + 4) {
        let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
        if len > FRAME_BYTES_MAX {
            return Err(WireError::TooLong(len));
        }
        let Some(frame) = buffer.get(at + 4..at + 4 + len) else { break };
        let [version, kind, body @ ..] = frame else { return Err(WireError::Malformed) };
        if *version != VERSION {
            return Err(WireError::Version(*version));
        }
        said.push(match *kind {
            HELLO => hello(body)?,
            ANSWERS => Said::Answers(answers(&Bytes::copy_from_slice(body))?),
            kind => return Err(WireError::Kind(kind)),
        });
        at += 4 + len;
    }
    buffer.drain(..at);
    Ok(said)
}

fn hello(body: &[u8]) -> Result<Said, WireError> {
    #[derive(Deserialize)]
    struct Hello {
        python: String,
        marker: String,
    }
    let hello: Hello = serde_json::from_slice(body).map_err(|_| WireError::Malformed)?;
    let marker = u128::from_str_radix(&hello.marker, 16).map_err(|_| WireError::Malformed)?;
    if hello.marker.len() != 32 {
        return Err(WireError::Malformed);
    }
    Ok(Said::Hello { python: hello.python, marker: marker.to_be_bytes() })
}

fn answers(body: &Bytes) -> Result<Vec<WorkerAnswer>, WireError> {
    let u32_at = |at: usize| -> Result<u32, WireError> {
        let b = body.get(at..at + 4).ok_or(WireError::Malformed)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    };
    let count = u32_at(0)? as usize;
    // Columns: seq 8, status 1, ran 4, value length 4, error length 4.
    if count > body.len() / 21 {
        return Err(WireError::Malformed);
    }
    let (seqs, statuses) = (4, 4 + 8 * count);
    let (rans, value_lens) = (statuses + count, statuses + 5 * count);
    let error_lens = value_lens + 4 * count;
    let mut value_at = error_lens + 4 * count;
    let mut error_at = value_at;
    for n in 0..count {
        error_at = error_at.checked_add(held(u32_at(value_lens + 4 * n)?)).ok_or(WireError::Malformed)?;
    }
    let mut out = Vec::with_capacity(count);
    for n in 0..count {
        let (low, high) = (u32_at(seqs + 8 * n)?, u32_at(seqs + 8 * n + 4)?);
        let status = *body.get(statuses + n).ok_or(WireError::Malformed)?;
        let kind = *OutcomeKind::ALL.get(usize::from(status)).ok_or(WireError::Malformed)?;
        let value_len = u32_at(value_lens + 4 * n)?;
        let value_end = value_at + held(value_len);
        let error_end =
            error_at.checked_add(u32_at(error_lens + 4 * n)? as usize).ok_or(WireError::Malformed)?;
        if value_end > body.len() || error_end > body.len() {
            return Err(WireError::Malformed);
        }
        let error = body.slice(error_at..error_end);
        out.push(WorkerAnswer {
            seq: u64::from(low) | u64::from(high) << 32,
            kind,
            ran_us: u32_at(rans + 4 * n)?,
            value: body.slice(value_at..value_end),
            is_large: is_large(value_len),
            error: (!error.is_empty()).then(|| Box::new(error_detail(&error))),
        });
        (value_at, error_at) = (value_end, error_end);
    }
    if error_at != body.len() {
        return Err(WireError::Malformed);
    }
    Ok(out)
}

/// An error that cannot be read is still an error.
fn error_detail(bytes: &[u8]) -> ErrorDetail {
    serde_json::from_slice(bytes).unwrap_or_else(|_| ErrorDetail {
        message: String::from_utf8_lossy(bytes).into_owned(),
        ..ErrorDetail::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pf_protocol::AttemptId;
    use pf_protocol::job::{Function, FunctionKind, JobSpec, Python};
    use pf_protocol::{JobKey, OwnerId};
    use proptest::prelude::*;

    #[test]
    fn what_is_sent_is_pinned() {
        let python = Python { client_python: Some("3.11.7".into()), chunked: true, ..Python::default() };
        let spec = JobSpec { body: Body::Python(python), ..JobSpec::default() };
        let function =
            Some(Function { kind: FunctionKind::Reference, bytes: b"m:f".to_vec(), name: "f".into() });
        let def =
            JobDef { job: pf_protocol::JobId(1), key: JobKey::default(), owner: OwnerId(1), spec, function };
        let mut out = Vec::new();
        job(&mut out, 2, &def, b"p-");
        assert_eq!(out, b"\x14\0\0\0\x03\x01\x02\0\0\0\x01\x01\x03\x0b\x01\0\x02\0fp-m:f");
        out.clear();
        let task = |seq, item: &'static [u8], is_large| WorkerTask {
            seq,
            attempt: AttemptId::default(),
            slot: 2,
            index: 0,
            item: Bytes::from_static(item),
            is_large,
        };
        tasks(&mut out, &[task(1, b"ab", false), task(2, b"n", true)]);
        let expected = [
            &b"\x29\0\0\0\x03\x02\x02\0\0\0"[..],
            b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\x02\0\0\0\x02\0\0\0\x01\0\0\x80abn",
        ];
        assert_eq!(out, expected.concat());
        out.clear();
        end(&mut out);
        assert_eq!(out, b"\x02\0\0\0\x03\x03");
        out.clear();
        permit(&mut out, [3, 258].into_iter());
        assert_eq!(out, b"\x03\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0");
        assert_eq!(permitted(&out), [3, 258]);
    }

    fn answers_frame() -> Vec<u8> {
        let mut out = Vec::new();
        frame(&mut out, ANSWERS, |out| {
            out.extend_from_slice(&2u32.to_le_bytes());
            [5u64, 6].iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
            out.extend_from_slice(&[0, 1]);
            [10u32, 20, 3, 0, 0, 15].iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
            out.extend_from_slice(b"val{\"message\":\"m\"}");
        });
        out
    }

    #[test]
    fn answers_are_read_in_whatever_pieces_they_come() {
        let bytes = answers_frame();
        for cut in 0..bytes.len() {
            let mut buffer = bytes[..cut].to_vec();
            assert_eq!(read(&mut buffer), Ok(vec![]));
            buffer.extend_from_slice(&bytes[cut..]);
            let said = read(&mut buffer).unwrap();
            let [Said::Answers(answers)] = &said[..] else { panic!("{said:?}") };
            assert_eq!(
                (answers[0].seq, &answers[0].value[..], answers[0].error.is_none()),
                (5, &b"val"[..], true)
            );
            assert_eq!(
                (answers[1].kind, answers[1].error.as_ref().unwrap().message.as_str()),
                (OutcomeKind::Exception, "m")
            );
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn hello_is_read() {
        let mut out = Vec::new();
        let text =
            br#"{"python":"3.11.7","pid":4,"marker":"000102030405060708090a0b0c0d0e0f","cloudpickle":true}"#;
        frame(&mut out, HELLO, |out| out.extend_from_slice(text));
        let marker = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        assert_eq!(read(&mut out), Ok(vec![Said::Hello { python: "3.11.7".into(), marker }]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 9u8..12) {
            let _ = read(&mut bytes.clone());
            let body = bytes.clone();
            bytes.clear();
            frame(&mut bytes, kind, |out| out.extend_from_slice(&body));
            let _ = read(&mut bytes);
        }
    }
}
