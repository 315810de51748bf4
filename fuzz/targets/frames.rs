//! Frames between broker, relay, pilot and manager: what is read can be written, and reads the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pf_protocol::frame::Frame;

fuzz_target!(|data: &[u8]| {
    let Ok(frame) = Frame::decode(data) else { return };
    // A message that was sent in a wordy way may be shorter now, and is never longer than a frame may be.
    let bytes = frame.encode().expect("what was read can be written");
    let again = Frame::decode(&bytes).expect("and read again");
    // As bytes: a NaN is not equal to itself.
    assert_eq!(again.encode().expect("and written again"), bytes);
});
