//! What a batch job knows of itself by its environment: its id, how often it was requeued, when it ends. The pilot asks.

use std::collections::BTreeMap;

/// Variables with the scheduler's id of the job. The last is the provider `local`'s.
const ID: [&str; 5] = ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "COBALT_JOBID", "PF_LOCAL_JOB_ID"];

/// Variables with the time of the job's end, Unix seconds: sbatch(1), OUTPUT ENVIRONMENT VARIABLES (since Slurm 23.02); COBALT_ENDTIME as
/// Cobalt 1.0 set it. PBS and LSF tell none.
const END_S: [&str; 2] = ["SLURM_JOB_END_TIME", "COBALT_ENDTIME"];

/// An end further away than this is no end: partitions without a limit have one in a year.
const LEFT_MS_MAX: u64 = 366 * 24 * 3_600_000;

/// The scheduler's id of the job.
#[must_use]
pub fn id(env: &BTreeMap<String, String>) -> Option<&str> {
    ID.iter().find_map(|name| env.get(*name)).map(String::as_str)
}

/// How often the job was put back into the queue and started again under the same id. Only Slurm tells; pilots of the others are submitted as not
/// to be run again.
#[must_use]
pub fn restarts(env: &BTreeMap<String, String>) -> u32 {
    env.get("SLURM_RESTART_COUNT").and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Milliseconds until the job's end at `now_ms` (Unix milliseconds), where the environment tells.
#[must_use]
pub fn left_ms(env: &BTreeMap<String, String>, now_ms: u64) -> Option<u64> {
    let end_s: u64 = END_S.iter().find_map(|name| env.get(*name)?.parse().ok())?;
    // In the past: of another job, or a clock that is wrong by more than the job is long.
    end_s.saturating_mul(1_000).checked_sub(now_ms).filter(|left| (1..LEFT_MS_MAX).contains(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn a_job_knows_itself() {
        let slurm =
            env(&[("SLURM_JOB_ID", "17"), ("SLURM_RESTART_COUNT", "2"), ("SLURM_JOB_END_TIME", "1000")]);
        assert_eq!((id(&slurm), restarts(&slurm), left_ms(&slurm, 400_000)), (Some("17"), 2, Some(600_000)));
        let cobalt = env(&[("COBALT_JOBID", "5"), ("COBALT_ENDTIME", "1000")]);
        assert_eq!((id(&cobalt), restarts(&cobalt), left_ms(&cobalt, 999_000)), (Some("5"), 0, Some(1_000)));
        assert_eq!((id(&env(&[])), restarts(&env(&[])), left_ms(&env(&[]), 0)), (None, 0, None));
    }

    #[test]
    fn an_end_that_cannot_be_is_none() {
        for end in ["1000", "x", "", "99999999999999", "18446744073709551615"] {
            assert_eq!(left_ms(&env(&[("SLURM_JOB_END_TIME", end)]), 1_000_000), None, "{end}");
        }
    }
}
