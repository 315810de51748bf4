//! Cobalt, as on the machines of ALCF until 2023. `qsub` of an executable script whose first lines are its directives; one `qstat` for all
//! jobs of the user; a job that has ended is gone from it at once, and the log that Cobalt writes into the block's folder tells how.
//!
//! Facts: transcripts recorded on Cobalt 1.0.33 and composed from ALCF's documentation (`tests/fixtures/cobalt`, where the first line says
//! which).

mod ask;
mod says;

use crate::script::{SCRIPT, block_script};
use crate::{BlockRequest, KnownBlock, Observed, Output, Plan, Provider, ProviderError};

/// See the module.
#[derive(Debug, Clone)]
pub struct Cobalt {
    /// Whose jobs they are.
    pub user: String,
}

/// The columns are asked for, since files and variables change those that there are by default. The name comes last: it may hold blanks.
/// `Admin_Hold` since a job that is held by both has the state `user_hold` (`cqm.py`, state of a job).
const HEADER: &str = "JobID:State:TimeRemaining:Admin_Hold:JobName";

/// They change the columns, whatever else is said.
const UNSET: [&str; 4] = ["QSTAT_HEADER", "QSTAT_HEADER_FULL", "CQSTAT_HEADER", "CQSTAT_HEADER_FULL"];

fn plan(argv: &[&str]) -> Plan {
    Plan::command(argv, &UNSET)
}

impl Provider for Cobalt {
    fn name(&self) -> &'static str {
        "cobalt"
    }

    fn dialect(&self) -> &'static str {
        ""
    }

    fn status_is_for_all(&self) -> bool {
        true
    }

    fn can_exclude(&self) -> bool {
        false
    }

    fn submit(&self, request: &BlockRequest) -> Result<Plan, ProviderError> {
        let script = block_script(&ask::directives(request)?, request)?;
        // Relative paths would be looked for in the job's folder.
        let argv = vec!["qsub".into(), format!("{}/{SCRIPT}", request.dir)];
        Ok(Plan { argv, script: Some((SCRIPT.into(), script)), ..Plan::default() })
    }

    fn submitted(&self, output: &Output) -> Result<String, ProviderError> {
        says::submitted(output)
    }

    fn status(&self, _blocks: &[KnownBlock]) -> Plan {
        // By user the header comes also when there are no jobs: an empty answer is none.
        plan(&["qstat", "-u", &self.user, "--header", HEADER])
    }

    fn observed(&self, output: &Output) -> Result<Vec<Observed>, ProviderError> {
        says::observed(output)
    }

    /// The log first names the job, once it is submitted, and last how it ended: it is asked when the queue does not know the job.
    fn lookup(&self, block: &KnownBlock) -> Vec<Plan> {
        let log = plan(&["cat", &format!("{}/{}.cobaltlog", block.dir, ask::PREFIX)]);
        match &block.id {
            Some(id) => vec![plan(&["qstat", "--header", HEADER, id]), log],
            None => vec![log],
        }
    }

    fn looked_up(
        &self,
        block: &KnownBlock,
        step: usize,
        output: &Output,
    ) -> Result<Option<Observed>, ProviderError> {
        match (&block.id, step) {
            (Some(_), 0) => says::shown(block, output),
            _ => says::logged(block, output),
        }
    }

    fn cancel(&self, block: &KnownBlock, _round: u32) -> Result<Plan, ProviderError> {
        // SIGTERM, and SIGKILL after five minutes: Cobalt knows nothing harsher for users, and a second word changes nothing.
        let Some(id) = &block.id else { return Err(ProviderError::NoId(block.name.clone())) };
        Ok(plan(&["qdel", id]))
    }

    fn cancelled(&self, output: &Output) -> Result<(), ProviderError> {
        says::cancelled(output)
    }
}
