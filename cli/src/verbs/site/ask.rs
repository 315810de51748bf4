//! Runs a scheduler's read-only commands, and finds out which scheduler is here.

use crate::limits::SITE_COMMAND_TIME;
use pf_providers::Plan;
use pf_site_profiles::survey::{self, Answer, SCHEDULERS, Survey, SurveyError};
use std::error::Error;

/// Asks a scheduler all its questions.
pub fn survey(scheduler: &str) -> Result<Survey, SurveyError> {
    let answers: Vec<Answer> = survey::questions(scheduler).iter().map(|argv| run(argv)).collect();
    survey::read(scheduler, &answers)
}

/// Runs one command; one that cannot be run, or does not end, is an answer too.
pub fn run(argv: &[String]) -> Answer {
    let plan = Plan { argv: argv.to_vec(), ..Plan::default() };
    match pf_relay::command::run_within(&plan, None, SITE_COMMAND_TIME) {
        Ok(output) => Answer { exit: output.exit, stdout: output.stdout, stderr: output.stderr },
        Err(error) => {
            let cause = error.source().map_or(String::new(), |cause| format!(": {cause}"));
            Answer { exit: None, stdout: String::new(), stderr: format!("{error}{cause}") }
        }
    }
}

/// Schedulers whose commands are here. Cobalt and PBS have a `qsub` both; only one of them has `pbsnodes`.
pub fn schedulers_here() -> Vec<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    SCHEDULERS
        .into_iter()
        .filter(|scheduler| match *scheduler {
            "slurm" => there("sinfo"),
            "pbs" => there("pbsnodes"),
            "lsf" => there("bqueues"),
            _ => there("qstat") && there("qsub") && !there("pbsnodes"),
        })
        .collect()
}
