//! LSF: IBM Spectrum LSF 10.1, the same with whole nodes on CORAL machines (`-nnodes`, "csm"), and OpenLava, which knows neither `bjobs -o`
//! nor most options of IBM's and misreads what it does not know. The script comes on the standard input of `bsub`; one `bjobs` for all ids;
//! `bhist` for what that does not list (any more), or does not know the end of.
//!
//! Facts: transcripts recorded on OpenLava 4.0 and composed from IBM's and OLCF's documentation (`tests/fixtures/lsf`, where the first line
//! says which).

mod ask;
mod says;

use crate::script::{SCRIPT, block_script};
use crate::{BlockRequest, KnownBlock, Observed, Output, Plan, Provider, ProviderError};

/// The dialects, the usual one first.
pub(crate) const DIALECTS: [&str; 3] = ["ibm", "csm", "openlava"];

/// What the makes of LSF do not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Make {
    /// IBM's, by slots.
    Ibm,
    /// IBM's, by whole nodes.
    Csm,
    OpenLava,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Lsf {
    make: Make,
}

/// The name comes next to last, since only the reason may hold anything.
const FIELDS: &str =
    "jobid stat exit_code exec_host run_time runtimelimit exit_reason job_name pend_reason delimiter='|'";

impl Lsf {
    /// Speaks one of [`DIALECTS`].
    pub(crate) fn new(dialect: &str) -> Lsf {
        let make = match dialect {
            "csm" => Make::Csm,
            "openlava" => Make::OpenLava,
            _ => Make::Ibm,
        };
        Lsf { make }
    }

    fn bjobs(&self, which: &[&str]) -> Plan {
        let start: &[&str] = match self.make {
            Make::Ibm | Make::Csm => &["bjobs", "-a", "-noheader", "-o", FIELDS],
            // Not cut to a width, one line a job.
            Make::OpenLava => &["bjobs", "-a", "-w", "-noheader"],
        };
        plan(&[start, which].concat())
    }
}

/// The command that tells the make; it answers also while the daemons are away. Whether a machine of IBM's gives whole nodes only is for the
/// profile to say.
pub(crate) fn probe() -> Plan {
    plan(&["lsid"])
}

/// `OpenLava 4.0dev4, ...` or `IBM Spectrum LSF 10.1.0.9, ...`; `Platform LSF` before IBM.
pub(crate) fn dialect(output: &Output) -> Option<&'static str> {
    let says = |word: &str| output.stdout.lines().any(|line| line.contains(word));
    if says("OpenLava") {
        Some(DIALECTS[2])
    } else {
        (says("IBM Spectrum LSF") || says("Platform LSF")).then_some(DIALECTS[0])
    }
}

fn plan(argv: &[&str]) -> Plan {
    // It would add a field to every time.
    Plan::command(argv, &["LSB_DISPLAY_YEAR"])
}

impl Provider for Lsf {
    fn name(&self) -> &'static str {
        "lsf"
    }

    fn dialect(&self) -> &'static str {
        match self.make {
            Make::Ibm => DIALECTS[0],
            Make::Csm => DIALECTS[1],
            Make::OpenLava => DIALECTS[2],
        }
    }

    fn can_exclude(&self) -> bool {
        self.make != Make::Csm
    }

    fn submit(&self, request: &BlockRequest) -> Result<Plan, ProviderError> {
        let script = block_script(&ask::directives(self.make, request)?, request)?;
        Ok(Plan {
            argv: vec!["bsub".into()],
            script: Some((SCRIPT.into(), script)),
            // As an argument the script's directives are not read.
            script_on_stdin: true,
            // They take the id away, send it elsewhere, or let bsub only look at the request (LSF Reference, "Environment variables").
            unset: vec!["BSUB_*"],
        })
    }

    fn submitted(&self, output: &Output) -> Result<String, ProviderError> {
        says::submitted(output)
    }

    fn status(&self, blocks: &[KnownBlock]) -> Plan {
        let ids: Vec<&str> = blocks.iter().filter_map(|b| b.id.as_deref()).collect();
        if ids.is_empty() {
            // Without ids all jobs of the user would be listed. What has no id yet is looked up by its name.
            return plan(&["true"]);
        }
        self.bjobs(&ids)
    }

    fn observed(&self, output: &Output) -> Result<Vec<Observed>, ProviderError> {
        says::observed(self.make, output)
    }

    /// The event log knows how a job ended; by default only its newest file is read.
    fn lookup(&self, block: &KnownBlock) -> Vec<Plan> {
        match &block.id {
            Some(id) => vec![
                self.bjobs(&[id]),
                plan(&["bhist", "-l", id]),
                plan(&["bhist", "-n", "0", "-l", id]),
                plan(&["bjobs", "-l", id]),
            ],
            None => vec![self.bjobs(&["-J", &block.name])],
        }
    }

    fn looked_up(
        &self,
        block: &KnownBlock,
        step: usize,
        output: &Output,
    ) -> Result<Option<Observed>, ProviderError> {
        match step {
            0 => says::listed(self.make, block, output),
            _ => says::history(block, output),
        }
    }

    fn cancel(&self, block: &KnownBlock, round: u32) -> Result<Plan, ProviderError> {
        // `bkill 0` ends all jobs of the user.
        let id = block.id.as_deref().filter(|id| says::is_id(id));
        let Some(id) = id else { return Err(ProviderError::NoId(block.name.clone())) };
        // Removes it also where its host cannot be reached any more.
        Ok(if round == 0 { plan(&["bkill", id]) } else { plan(&["bkill", "-r", id]) })
    }

    fn cancelled(&self, output: &Output) -> Result<(), ProviderError> {
        says::cancelled(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_make_is_told_by_lsid() {
        let said = |stdout: &str| Output { exit: Some(255), stdout: stdout.into(), ..Output::default() };
        assert_eq!(dialect(&said("OpenLava 4.0dev4, Nov 23 2026\n\n")), Some("openlava"));
        assert_eq!(dialect(&said("IBM Spectrum LSF Standard 10.1.0.9, Oct 16 2019\n")), Some("ibm"));
        assert_eq!(dialect(&said("hello\n")), None);
    }

    #[test]
    fn all_jobs_of_the_user_are_never_killed() {
        let block = |id: &str| KnownBlock { id: Some(id.into()), ..KnownBlock::default() };
        let lsf = Lsf::new("openlava");
        for id in ["0", "00", "", "-u", "7[1]"] {
            assert!(matches!(lsf.cancel(&block(id), 0), Err(ProviderError::NoId(_))), "{id:?}");
        }
        assert_eq!(lsf.cancel(&block("7"), 0).unwrap().argv, ["bkill", "7"]);
        assert_eq!(lsf.cancel(&block("7"), 1).unwrap().argv, ["bkill", "-r", "7"]);
        let zero = Output {
            exit: Some(0),
            stdout: "Job <0> is submitted to queue <a>.\n".into(),
            ..Output::default()
        };
        assert!(matches!(lsf.submitted(&zero), Err(ProviderError::NotUnderstood(_))));
    }
}
