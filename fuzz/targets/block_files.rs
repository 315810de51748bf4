//! Files of a block that a relay reads whatever wrote them: spools of outcomes, logs of task output, tickets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pf_protocol::outlog::{HEADER_BYTES, Scan};
use pf_protocol::spool;
use pf_protocol::ticket::Ticket;

fuzz_target!(|data: &[u8]| {
    let (batches, _) = spool::decode(data);
    if !batches.is_empty() {
        let bytes = spool::encode(&batches).expect("what was read can be written");
        let (again, rest) = spool::decode(&bytes);
        assert!(again.len() == batches.len() && rest.is_none());
    }
    let mut scan = Scan::new(data);
    let mut read = 0;
    for (header, piece) in scan.by_ref() {
        assert_eq!(header.len as usize, piece.len());
        read += HEADER_BYTES + piece.len();
    }
    assert!(read <= scan.offset() && scan.offset() <= data.len());
    let _ = serde_json::from_slice::<Ticket>(data);
});
