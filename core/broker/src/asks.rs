//! Questions of people to relays: passed on, and answered when the relay answers, goes, or takes too long.

use crate::broker::{Broker, Turn};
use crate::limits::{ASK_TIMEOUT, ASKS_MAX};
use crate::requests::{Code, Refusal, Reply};
use pf_protocol::message::{Answer, AnswerWhat, Ask, AskWhat};
use pf_protocol::{EndpointId, Micros};
use std::collections::{BTreeMap, BTreeSet};

/// A question that waits for its answer.
#[derive(Debug)]
pub(crate) struct Asked {
    pub conn: u64,
    pub ticket: u64,
    pub until: Micros,
    /// For explain: what the broker itself has to say. The relay's lines are added, or why there are none.
    pub lines: Option<Vec<String>>,
}

/// All of them, by the number under which they were sent.
#[derive(Debug, Default)]
pub(crate) struct Asks {
    open: BTreeMap<u64, Asked>,
    due: BTreeSet<(Micros, u64)>,
    last: u64,
}

impl Asks {
    fn add(&mut self, asked: Asked) -> u64 {
        self.last += 1;
        self.due.insert((asked.until, self.last));
        self.open.insert(self.last, asked);
        self.last
    }

    fn take(&mut self, id: u64) -> Option<Asked> {
        let asked = self.open.remove(&id)?;
        self.due.remove(&(asked.until, id));
        Some(asked)
    }

    fn of_conn(&mut self, conn: u64) -> Vec<Asked> {
        let ids: Vec<u64> = self.open.iter().filter(|(_, a)| a.conn == conn).map(|(id, _)| *id).collect();
        ids.into_iter().filter_map(|id| self.take(id)).collect()
    }

    /// Takes those that took too long.
    pub fn due(&mut self, now: Micros) -> Vec<Asked> {
        let ids: Vec<u64> = self.due.iter().take_while(|d| d.0 <= now).map(|d| d.1).collect();
        ids.into_iter().filter_map(|id| self.take(id)).collect()
    }

    /// When the next one has taken too long.
    pub fn next_due(&self) -> Option<Micros> {
        self.due.first().map(|due| due.0)
    }
}

impl Broker {
    /// Passes a question on; answers at once when that is not possible.
    pub(crate) fn ask(
        &mut self,
        ticket: u64,
        endpoint: EndpointId,
        what: AskWhat,
        lines: Option<Vec<String>>,
        turn: &mut Turn<'_>,
    ) {
        let name = self.endpoint_name(endpoint);
        let until = turn.now + ASK_TIMEOUT;
        let conn = self.endpoints.get(&endpoint).and_then(|e| e.link.as_ref()).map(|link| link.conn);
        let asked = Asked { conn: conn.unwrap_or_default(), ticket, until, lines };
        let Some(conn) = conn.filter(|conn| self.acceptor.is_up(*conn)) else {
            let refusal =
                Refusal::new(Code::NotConnected, format!("the relay of endpoint {name} is not connected"))
                    .hint(format!("start it, then `pf endpoint show {name}` tells when it is there"));
            return self.answer_ask(asked, Err(refusal), turn);
        };
        if self.asks.open.len() >= ASKS_MAX {
            let refusal =
                Refusal::new(Code::TooMany, format!("{ASKS_MAX} questions wait for answers already"));
            return self.answer_ask(asked, Err(refusal), turn);
        }
        let id = self.asks.add(asked);
        self.send(conn, Ask { id, what }.into(), turn);
    }

    pub(crate) fn on_answer(&mut self, conn: u64, answer: Answer, turn: &mut Turn<'_>) {
        if self.asks.open.get(&answer.id).is_some_and(|asked| asked.conn == conn)
            && let Some(asked) = self.asks.take(answer.id)
        {
            self.answer_ask(asked, Ok(answer.what), turn);
        }
    }

    pub(crate) fn asks_of_gone(&mut self, conn: u64, turn: &mut Turn<'_>) {
        for asked in self.asks.of_conn(conn) {
            let gone = Refusal::new(Code::NotConnected, "the endpoint's relay went away before it answered");
            self.answer_ask(asked, Err(gone), turn);
        }
    }

    pub(crate) fn answer_ask(
        &mut self,
        asked: Asked,
        answer: Result<AnswerWhat, Refusal>,
        turn: &mut Turn<'_>,
    ) {
        let reply = match (asked.lines, answer) {
            (None, answer) => answer.map(Reply::Answer),
            (Some(mut lines), answer) => {
                match answer {
                    Ok(AnswerWhat::Text(more)) => lines.extend(more),
                    Ok(AnswerWhat::Failed(why)) => lines.push(format!("the relay cannot tell more: {why}")),
                    Ok(_) => {}
                    Err(refusal) => lines.push(refusal.message),
                }
                Ok(Reply::Lines(lines))
            }
        };
        self.reply(asked.ticket, reply, turn);
    }
}
