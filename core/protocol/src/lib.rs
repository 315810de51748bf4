//! Ids, records, messages and limits of Pilotfish: what travels and what is stored.
