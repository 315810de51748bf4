//! What a worker sends its manager, in pieces as a pipe gives them: the first byte says where the first piece ends.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// The very file, since nothing outside of its crate calls it, and the crate around it needs ZeroMQ and hwloc.
#[path = "../../pilot/src/wire.rs"]
#[expect(dead_code, reason = "its other half writes")]
mod wire;

fuzz_target!(|data: &[u8]| {
    let Some((cut, bytes)) = data.split_first() else { return };
    let whole = {
        let mut buffer = bytes.to_vec();
        wire::read(&mut buffer).map(|said| (said, buffer))
    };
    let (first, rest) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    let mut buffer = first.to_vec();
    let Ok(mut said) = wire::read(&mut buffer) else { return };
    buffer.extend_from_slice(rest);
    match (whole, wire::read(&mut buffer)) {
        (Ok((all, left)), Ok(more)) => {
            said.extend(more);
            assert!(said == all && buffer == left, "the same, however it comes");
        }
        (Err(one), Err(other)) => assert_eq!(one, other),
        (one, other) => panic!("{one:?} at once, {other:?} in pieces"),
    }
});
