//! PBS: OpenPBS and PBS Pro (one code base, from 18.1 on), and Torque. `qsub` of a script whose directives say it all, one `qstat -f` of all
//! ids, `qstat -x` for what that does not list (any more), one `qdel` a block. Text is read, never JSON: what `qstat -F json` prints is
//! broken by the environment of any job of anybody.
//!
//! Facts: transcripts recorded on OpenPBS 23.06.06 (`tests/fixtures/pbs`), its source, and for Torque the source of 6.x.

mod ask;
mod says;

use crate::script::{SCRIPT, block_script};
use crate::{BlockRequest, KnownBlock, Observed, Output, Plan, Provider, ProviderError};

/// The dialects, the usual one first.
pub(crate) const DIALECTS: [&str; 2] = ["openpbs", "torque"];

/// What the two makes of PBS do not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Make {
    Open,
    Torque,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Pbs {
    make: Make,
}

impl Pbs {
    /// Speaks one of [`DIALECTS`].
    pub(crate) fn new(dialect: &str) -> Pbs {
        Pbs { make: if dialect == DIALECTS[1] { Make::Torque } else { Make::Open } }
    }
}

/// The command that tells the make.
pub(crate) fn probe() -> Plan {
    plan(&["qstat", "--version"])
}

/// `pbs_version = 23.06.06` on standard output; Torque has `Version:` and `Commit:` on standard error.
pub(crate) fn dialect(output: &Output) -> Option<&'static str> {
    let both = format!("{}\n{}", output.stdout, output.stderr);
    let starts = |word: &str| both.lines().any(|line| line.trim_start().starts_with(word));
    if starts("pbs_version") {
        Some(DIALECTS[0])
    } else {
        (starts("Version:") && starts("Commit:")).then_some(DIALECTS[1])
    }
}

fn plan(argv: &[&str]) -> Plan {
    Plan::command(argv, &[])
}

impl Provider for Pbs {
    fn name(&self) -> &'static str {
        "pbs"
    }

    fn dialect(&self) -> &'static str {
        match self.make {
            Make::Open => DIALECTS[0],
            Make::Torque => DIALECTS[1],
        }
    }

    fn can_exclude(&self) -> bool {
        false
    }

    fn submit(&self, request: &BlockRequest) -> Result<Plan, ProviderError> {
        let mut directives = ask::directives(self.make, request)?;
        // PBS sets both to the cores of a chunk, unasked: a task of one core would begin as many threads.
        directives.push("unset NCPUS OMP_NUM_THREADS".into());
        let script = block_script(&directives, request)?;
        let mut argv = vec!["qsub".to_string()];
        if self.make == Make::Open {
            // Without it qsub leaves a daemon behind, which serves later submits with the environment of the first.
            argv.push("-f".into());
        }
        argv.push(format!("{}/{SCRIPT}", request.dir));
        // It would change which lines of the script are directives.
        Ok(Plan {
            argv,
            script: Some((SCRIPT.into(), script)),
            unset: vec!["PBS_DPREFIX"],
            ..Plan::default()
        })
    }

    fn submitted(&self, output: &Output) -> Result<String, ProviderError> {
        says::submitted(output)
    }

    /// With `-E` all ids are one request to the server, and unknown ones are silently left out. Not with `-x`: where history is switched off,
    /// that is refused for jobs that run as well.
    fn status(&self, blocks: &[KnownBlock]) -> Plan {
        let ids: Vec<&str> = blocks.iter().filter_map(|b| b.id.as_deref()).collect();
        if ids.is_empty() {
            // Without ids qstat would list the jobs of all users. What has no id yet is looked up by its name.
            return plan(&["true"]);
        }
        let start: &[&str] = match self.make {
            Make::Open => &["qstat", "-E", "-f"],
            Make::Torque => &["qstat", "-f", "-1"],
        };
        plan(&[start, &ids].concat())
    }

    fn observed(&self, output: &Output) -> Result<Vec<Observed>, ProviderError> {
        says::observed(self.make, output)
    }

    /// First what the server has, so that one listing that left it out is not believed, then its history.
    fn lookup(&self, block: &KnownBlock) -> Vec<Plan> {
        match (self.make, &block.id) {
            (Make::Open, Some(id)) => vec![plan(&["qstat", "-f", id]), plan(&["qstat", "-x", "-f", id])],
            (Make::Torque, Some(id)) => vec![plan(&["qstat", "-f", "-1", id])],
            (Make::Open, None) => {
                vec![plan(&["qselect", "-N", &block.name]), plan(&["qselect", "-x", "-N", &block.name])]
            }
            (Make::Torque, None) => vec![plan(&["qselect", "-N", &block.name])],
        }
    }

    fn looked_up(
        &self,
        block: &KnownBlock,
        _step: usize,
        output: &Output,
    ) -> Result<Option<Observed>, ProviderError> {
        match &block.id {
            Some(_) => says::shown(self.make, block, output),
            None => says::selected(block, output),
        }
    }

    /// One id a call: unknown and live ids in one call of qdel have crashed a server.
    fn cancel(&self, block: &KnownBlock, round: u32) -> Result<Plan, ProviderError> {
        let Some(id) = &block.id else { return Err(ProviderError::NoId(block.name.clone())) };
        Ok(match (round, self.make) {
            (0, _) => plan(&["qdel", id]),
            // Also where the node cannot be reached any more.
            (_, Make::Open) => plan(&["qdel", "-W", "force", id]),
            (_, Make::Torque) => plan(&["qsig", "-s", "KILL", id]),
        })
    }

    fn cancelled(&self, output: &Output) -> Result<(), ProviderError> {
        says::cancelled(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_make_is_told_by_its_version() {
        let said = |stdout: &str, stderr: &str| Output {
            exit: Some(0),
            stdout: stdout.into(),
            stderr: stderr.into(),
        };
        assert_eq!(dialect(&said("pbs_version = 23.06.06\n", "")), Some("openpbs"));
        assert_eq!(dialect(&said("", "Version: 6.1.2\nCommit: 6b3d4ae\n")), Some("torque"));
        assert_eq!(dialect(&said("version: 2.0\n", "")), None);
    }

    #[test]
    fn status_never_lists_everybody() {
        let block = |id: Option<&str>| KnownBlock { id: id.map(Into::into), ..KnownBlock::default() };
        let pbs = Pbs::new("openpbs");
        assert_eq!(pbs.status(&[block(None)]).argv, ["true"]);
        let argv = pbs.status(&[block(Some("1.s")), block(None), block(Some("2.s"))]).argv;
        assert_eq!(argv, ["qstat", "-E", "-f", "1.s", "2.s"]);
        assert_eq!(Pbs::new("torque").status(&[block(Some("1.s"))]).argv, ["qstat", "-f", "-1", "1.s"]);
        assert!(matches!(pbs.cancel(&block(None), 0), Err(ProviderError::NoId(_))));
    }
}
