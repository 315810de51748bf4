//! Why the tasks of a job are where they are, in words: what the broker knows. The relay adds what it knows.

use crate::broker::Broker;
use crate::relays::Phase;
use crate::requests::{Caller, Refusal};
use pf_protocol::message::VERSION_LARGE;
use pf_protocol::{EndpointId, JobId};

impl Broker {
    /// The broker's lines, and the endpoint whose relay can add to them.
    pub(crate) fn explain(
        &self,
        caller: Caller,
        id: JobId,
    ) -> Result<(Vec<String>, Option<EndpointId>), Refusal> {
        let job = self.own_job(caller, id)?;
        let counts = self.summary(job).counts;
        let mut lines = vec![format!(
            "{id}: {} tasks: {} queued at the broker, {} at the endpoint, {} running, {} ok, {} failed, {} cancelled",
            counts.total,
            counts.queued,
            counts.assigned,
            counts.running,
            counts.ok,
            counts.failed,
            counts.cancelled
        )];
        if !job.cancel.reason.is_empty() {
            lines.push(format!("to be cancelled: {}", job.cancel.reason));
        }
        let Some(live) = self.jobs.get(&id) else {
            lines.push("it is over".into());
            return Ok((lines, None));
        };
        if job.open {
            lines.push("it is open: it is over only once it is closed".into());
        }
        if live.waiting {
            let others = job.spec.after.iter().map(|after| after.job);
            let open = others.filter(|other| self.state.jobs.get(other).is_some_and(|j| !j.is_over()));
            let open: Vec<String> = open.map(|other| other.to_string()).collect();
            lines.push(format!("it waits for {} to end", open.join(", ")));
        }
        if job.spec.max_running.is_some_and(|most| live.assigned >= u64::from(most)) {
            lines.push(format!("max_running is reached: {} tasks are out", live.assigned));
        }
        let suspects = live.suspects.len();
        if suspects > 0 {
            lines.push(format!("{suspects} tasks lost their manager and are run apart from each other"));
        }
        if live.loading {
            lines.push("its items are being read from disk".into());
        }
        let link = self.endpoints.get(&job.endpoint).and_then(|e| e.link.as_ref());
        if !job.large.is_empty() && link.is_some_and(|link| link.version < VERSION_LARGE) {
            lines.push("its relay is of an older version that takes no large payloads".into());
        }
        let pulled = link.map_or(0, |link| link.pulls.iter().filter(|p| p.outcome.job == id).count());
        if pulled > 0 {
            lines.push(format!("the large results of {pulled} tasks are on their way here"));
        }
        lines.push(self.explain_endpoint(job.endpoint));
        Ok((lines, Some(job.endpoint)))
    }

    fn explain_endpoint(&self, id: EndpointId) -> String {
        let name = self.endpoint_name(id);
        let Some(live) = self.endpoints.get(&id) else { return format!("endpoint {name} was removed") };
        match &live.link {
            None => match &live.gone {
                Some(gone) => {
                    format!("endpoint {name}: its relay (process {} on {}) is not heard", gone.pid, gone.host)
                }
                None => format!("endpoint {name}: its relay is not running"),
            },
            Some(link) => match link.phase {
                Phase::Granting => format!("endpoint {name}: its relay is being let in"),
                Phase::Reconciling => format!("endpoint {name}: its relay takes inventory before it goes on"),
                Phase::Up => {
                    let tasks = link.credit.tasks_upto.saturating_sub(link.sent_tasks);
                    let bytes = link.credit.bytes_upto.saturating_sub(link.sent_bytes);
                    format!("endpoint {name}: its relay takes {tasks} more tasks, {bytes} bytes, now")
                }
            },
        }
    }
}
