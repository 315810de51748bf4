//! One session, as either side sees it: sequence numbers, heartbeats, silence.

use crate::{Out, Timing};
use pf_protocol::Micros;
use pf_protocol::frame::Frame;
use pf_protocol::message::{Bye, Heartbeat, Message};

/// A session that is up on one connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub id: u64,
    sent: u64,
    received: u64,
    heartbeat_us: Micros,
    silent_us: Micros,
    last_sent: Micros,
    last_heard: Micros,
}

/// What a frame means to the session.
#[expect(
    clippy::large_enum_variant,
    reason = "lives for one call; a box would cost each message an allocation"
)]
pub(crate) enum Verdict {
    /// For the core.
    Message(Message),
    /// For the session alone.
    Nothing,
    /// The session is over: why, and whether the peer ends for good.
    Over(String, bool),
}

impl Session {
    pub fn new(id: u64, timing: Timing, now: Micros) -> Self {
        Session {
            id,
            sent: 0,
            received: 0,
            heartbeat_us: timing.heartbeat_ms * 1_000,
            silent_us: timing.silent_ms * 1_000,
            last_sent: now,
            last_heard: now,
        }
    }

    /// Encodes and counts a message. A message that cannot be encoded (over the frame limit) is a bug of the core that made it: the
    /// session ends, so that nothing is silently missing from it.
    pub fn send(
        &mut self,
        now: Micros,
        conn: u64,
        message: Message,
        out: &mut Vec<Out>,
    ) -> Result<(), String> {
        let frame = Frame { session: self.id, seq: self.sent + 1, message };
        let bytes = frame.encode().map_err(|e| format!("{} could not be sent: {e}", frame.message.name()))?;
        self.sent += 1;
        self.last_sent = now;
        out.push(Out::Frame { conn, bytes });
        Ok(())
    }

    /// Takes a frame of this session.
    pub fn receive(&mut self, now: Micros, frame: Frame) -> Verdict {
        if frame.seq != self.received + 1 {
            return Verdict::Over(
                format!("frames were lost: {} came after {}", frame.seq, self.received),
                false,
            );
        }
        self.received += 1;
        self.last_heard = now;
        match frame.message {
            Message::Heartbeat(_) => Verdict::Nothing,
            Message::Bye(Bye { reason, done }) => Verdict::Over(reason, done),
            Message::Hello(_) | Message::Welcome(_) | Message::Refuse(_) => {
                Verdict::Over(format!("{} in the middle of a session", frame.message.name()), false)
            }
            message => Verdict::Message(message),
        }
    }

    /// Sends a heartbeat if one is due; `Err` when the peer has been silent for too long.
    pub fn on_timer(&mut self, now: Micros, conn: u64, out: &mut Vec<Out>) -> Result<(), String> {
        if now >= self.last_heard + self.silent_us {
            return Err(format!("nothing was heard for {} s", (now - self.last_heard) / 1_000_000));
        }
        if now >= self.last_sent + self.heartbeat_us {
            self.send(now, conn, Heartbeat {}.into(), out)?;
        }
        Ok(())
    }

    /// When [`Session::on_timer`] has something to do.
    pub fn next_deadline(&self) -> Micros {
        (self.last_heard + self.silent_us).min(self.last_sent + self.heartbeat_us)
    }

    /// This host's clock stood still: silence is counted anew.
    pub fn forgive(&mut self, now: Micros) {
        self.last_heard = now;
    }
}
