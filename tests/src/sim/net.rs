//! Wires between two ends, each with a number of its own at either end. A wire keeps order, but may lose, repeat, and be cut.

use std::collections::BTreeMap;

/// Who is at an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// The broker.
    Broker,
    /// The relay; which of its lives does not matter, since a wire is cut when an end dies.
    Relay,
    /// A manager, by its place in the simulation.
    Manager(usize),
}

/// One wire, as seen from one end: the other end and the connection's number there.
#[derive(Debug, Clone, Copy)]
pub struct End {
    /// Who is there.
    pub party: Party,
    /// The connection's number there.
    pub conn: u64,
    /// When the last frame from here arrives there: the next one is not earlier.
    pub last_arrival: u64,
}

/// All wires.
#[derive(Debug, Default)]
pub struct Net {
    ends: BTreeMap<(Party, u64), End>,
    last_conn: u64,
}

impl Net {
    /// A new wire; its numbers at `a` and at `b`.
    pub fn connect(&mut self, a: Party, b: Party) -> (u64, u64) {
        let (at_a, at_b) = (self.last_conn + 1, self.last_conn + 2);
        self.last_conn += 2;
        self.ends.insert((a, at_a), End { party: b, conn: at_b, last_arrival: 0 });
        self.ends.insert((b, at_b), End { party: a, conn: at_a, last_arrival: 0 });
        (at_a, at_b)
    }

    /// The other end of a wire, while it is not cut.
    pub fn other(&mut self, party: Party, conn: u64) -> Option<&mut End> {
        self.ends.get_mut(&(party, conn))
    }

    /// Cuts a wire; the other end.
    pub fn cut(&mut self, party: Party, conn: u64) -> Option<End> {
        let end = self.ends.remove(&(party, conn))?;
        self.ends.remove(&(end.party, end.conn));
        Some(end)
    }

    /// Connections of a party.
    #[must_use]
    pub fn conns(&self, party: Party) -> Vec<u64> {
        self.ends.keys().filter(|key| key.0 == party).map(|key| key.1).collect()
    }
}
