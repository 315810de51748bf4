//! Signals that the host sends to all processes of a block at once: when a batch job is cancelled, preempted or over, schedulers signal each process in it, so
//! tasks die of it at the moment in which their manager is told to end. That is no failure of theirs: they are given up with their manager.

use super::ManagerCore;
use super::attempts::Ending;
use crate::limits::HOST_SIGNAL_US;
use crate::{Effect, Input, ProcessEnd, ProcessStatus, WorkerEnd};
use pf_protocol::Micros;

/// SIGINT, SIGUSR1, SIGUSR2, SIGTERM: by which schedulers tell a block that it is to end. srun passes each on to every process of its step; LSF's `bkill` begins
/// with SIGINT, to every process group of the job (OpenLava's `mykillpg`).
const TOLD_TO_END: [i32; 4] = [2, 10, 12, 15];
const SIGKILL: i32 = 9;

impl ManagerCore {
    /// The input, unless it is the end of a process by such a signal that this manager did not send: whether the manager was meant as well shows in a moment.
    pub(super) fn believe_or_wait(&mut self, now: Micros, input: Input) -> Option<Input> {
        let end = match &input {
            Input::CommandEnded { attempt, end } => {
                let asked = self.attempts.all.get(attempt).is_none_or(|a| a.ending.is_some());
                Some(end).filter(|_| !asked)
            }
            Input::WorkerGone { worker, end: WorkerEnd::Ended { end, .. } } => {
                let pipe = self.workers.all.get(worker).into_iter().flat_map(|w| &w.pipe);
                let asked =
                    pipe.filter_map(|p| self.attempts.all.get(&p.attempt)).any(|a| a.ending.is_some());
                Some(end).filter(|_| !asked)
            }
            _ => None,
        };
        let told =
            |end: &ProcessEnd| matches!(end.status, ProcessStatus::Signal(s) if TOLD_TO_END.contains(&s));
        if self.drain.is_some() || !end.is_some_and(told) {
            return Some(input);
        }
        self.unsure.push_back((now + HOST_SIGNAL_US, input));
        None
    }

    /// Takes the ends that have waited: their moment is over, or the manager ends too.
    pub(super) fn believe_what_is_due(&mut self, now: Micros, out: &mut Vec<Effect>) {
        while self.unsure.front().is_some_and(|(at, _)| *at <= now || self.drain.is_some()) {
            if let Some((_, input)) = self.unsure.pop_front() {
                self.take(now, input, out);
            }
        }
    }

    /// When the next of them is believed.
    pub(super) fn next_belief(&self) -> Option<Micros> {
        self.unsure.front().map(|(at, _)| *at)
    }

    /// Why an attempt whose process ended like this was ended: as it was told, or with its manager.
    pub(super) fn ending_of(&self, told: Option<&Ending>, end: &ProcessEnd) -> Option<Ending> {
        let with_us =
            matches!(end.status, ProcessStatus::Signal(s) if s == SIGKILL || TOLD_TO_END.contains(&s));
        let with_us = with_us && end.out_of_memory.is_none();
        let drain = self.drain.as_ref().filter(|_| with_us);
        told.cloned().or_else(|| drain.map(|drain| Ending::GivenUp(drain.reason.clone())))
    }
}
