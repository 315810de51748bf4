//! What a profile says against what the machine says. Pure; `check` prints it.

use pf_site_profiles::survey::Survey;
use pf_site_profiles::{Profile, Queue};
use serde::Serialize;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It may be meant so.
    Warning,
    /// A block would not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub about: String,
    /// How it went.
    pub verdict: Verdict,
    /// What was found.
    pub words: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Finding {
    pub fn ok(about: &str, words: impl Into<String>) -> Finding {
        Finding { about: about.into(), verdict: Verdict::Ok, words: words.into(), hint: None }
    }

    pub fn warning(about: &str, words: impl Into<String>, hint: impl Into<String>) -> Finding {
        Finding {
            about: about.into(),
            verdict: Verdict::Warning,
            words: words.into(),
            hint: Some(hint.into()),
        }
    }

    pub fn problem(about: &str, words: impl Into<String>, hint: impl Into<String>) -> Finding {
        Finding {
            about: about.into(),
            verdict: Verdict::Problem,
            words: words.into(),
            hint: Some(hint.into()),
        }
    }
}

/// What an endpoint will ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Name of the endpoint.
    pub endpoint: String,
    /// Queue, if it names one.
    pub queue: Option<String>,
    /// Quality of service, if it names one.
    pub qos: Option<String>,
    /// Constraint, if it names one.
    pub constraint: Option<String>,
    /// Nodes of a block.
    pub nodes: u32,
    /// Walltime of a block, minutes, rounded up.
    pub walltime_minutes: u64,
}

/// The profile's queues against the scheduler's. Names of QOSes are not in what `sinfo` says.
pub fn queues(profile: &Profile, survey: &Survey) -> Vec<Finding> {
    let about = "queues";
    let there: Vec<&str> = survey.queues.iter().map(|q| q.name.as_str()).collect();
    let mut findings = Vec::new();
    if profile.queues_are.setting() == "qos" {
        findings.push(Finding::ok(about, format!("the scheduler has {}", there.join(", "))));
        return findings;
    }
    let mut names: Vec<&str> = profile.queues.iter().map(|q| q.name.as_str()).collect();
    names.dedup();
    for name in names {
        if survey.closed.iter().any(|c| c == name) {
            findings.push(Finding::warning(about, format!("{name} is closed now"), "use another, or wait"));
        } else if !there.contains(&name) {
            let words = format!("the profile has {name}, the scheduler does not");
            findings.push(Finding::warning(about, words, "the profile may be old; the scheduler is right"));
        }
    }
    for queue in &survey.queues {
        findings.extend(walltimes(profile, queue));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(about, format!("the scheduler has {}", there.join(", "))));
    }
    findings
}

/// The longest walltime of a queue here and there.
fn walltimes(profile: &Profile, real: &Queue) -> Option<Finding> {
    let rows = profile.queues.iter().filter(|q| q.name == real.name);
    let ours = rows.filter_map(|q| q.walltime_max_minutes).max()?;
    let theirs = real.walltime_max_minutes?;
    (ours > theirs).then(|| {
        let words =
            format!("{}: the profile says {ours} minutes at most, the scheduler says {theirs}", real.name);
        Finding::warning("queues", words, "the profile may be old; the scheduler is right")
    })
}

/// What an endpoint will ask for, against profile and scheduler.
pub fn wanted(profile: &Profile, survey: Option<&Survey>, wanted: &Wanted) -> Vec<Finding> {
    let about = format!("endpoint {}", wanted.endpoint);
    let (nodes, minutes) = (wanted.nodes, wanted.walltime_minutes);
    let mut findings = Vec::new();
    if let (Some(survey), Some(queue)) = (survey, &wanted.queue) {
        match survey.queues.iter().find(|q| q.name == *queue) {
            Some(real) => findings.extend(over(&about, real, nodes, minutes, "the scheduler's")),
            None => {
                let known: Vec<&str> = survey.queues.iter().map(|q| q.name.as_str()).collect();
                let closed = survey.closed.contains(queue);
                let words = format!("queue {queue} {}", if closed { "is closed" } else { "is not there" });
                findings.push(Finding::problem(
                    &about,
                    words,
                    format!("set queue to one of {}", known.join(", ")),
                ));
            }
        }
    }
    let name = if profile.queues_are.setting() == "qos" { &wanted.qos } else { &wanted.queue };
    if let Some(name) = name.as_ref().filter(|n| profile.queues.iter().any(|q| q.name == **n)) {
        let constraint = wanted.constraint.as_deref().unwrap_or("");
        let rows: Vec<&Queue> = profile.queue_rows(name, nodes, constraint).collect();
        if rows.is_empty() {
            let words = format!("{nodes} nodes fit no rule of {name} in the profile");
            findings.push(Finding::warning(&about, words, "see `pf site show`, and set nodes_per_block"));
        } else if findings.is_empty()
            && rows.iter().all(|q| over(&about, q, nodes, minutes, "the profile's").is_some())
        {
            findings.extend(over(&about, rows[0], nodes, minutes, "the profile's"));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(&about, format!("blocks of {nodes} nodes for {minutes} minutes fit")));
    }
    findings
}

fn over(about: &str, queue: &Queue, nodes: u32, minutes: u64, whose: &str) -> Option<Finding> {
    let name = &queue.name;
    if let Some(most) = queue.nodes_max.filter(|most| nodes > *most) {
        let words = format!("blocks of {nodes} nodes are over {whose} limit of {name}, {most}");
        return Some(Finding::problem(about, words, format!("set nodes_per_block to {most} or less")));
    }
    if let Some(most) = queue.walltime_max_minutes.filter(|most| minutes > u64::from(*most)) {
        let words = format!("a walltime of {minutes} minutes is over {whose} limit of {name}, {most}");
        return Some(Finding::problem(about, words, format!("set walltime to \"{most}m\" or less")));
    }
    let least = queue.walltime_min_minutes.filter(|least| minutes < u64::from(*least))?;
    let words = format!("a walltime of {minutes} minutes is under {whose} least for {name}, {least}");
    Some(Finding::problem(about, words, format!("set walltime to \"{least}m\" or more")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str, nodes: u32, minutes: u32) -> Queue {
        Queue {
            name: name.into(),
            nodes_max: Some(nodes),
            walltime_max_minutes: Some(minutes),
            ..Queue::default()
        }
    }

    #[test]
    fn what_does_not_fit_is_a_problem_in_words() {
        let profile =
            Profile { queues: vec![queue("small", 4, 60), queue("gone", 4, 60)], ..Profile::default() };
        let survey =
            Survey { queues: vec![queue("small", 4, 30), queue("other", 9, 90)], ..Survey::default() };
        let words = |f: Vec<Finding>| {
            f.into_iter().map(|f| format!("{:?} {}", f.verdict, f.words)).collect::<Vec<_>>()
        };
        assert_eq!(
            words(queues(&profile, &survey)),
            [
                "Warning the profile has gone, the scheduler does not",
                "Warning small: the profile says 60 minutes at most, the scheduler says 30"
            ]
        );
        let ask = |queue: &str, nodes, walltime_minutes| {
            let ask = Wanted {
                endpoint: "e".into(),
                queue: Some(queue.into()),
                nodes,
                walltime_minutes,
                ..Wanted::default()
            };
            words(wanted(&profile, Some(&survey), &ask)).join("; ")
        };
        assert_eq!(ask("small", 4, 30), "Ok blocks of 4 nodes for 30 minutes fit");
        assert_eq!(
            ask("small", 5, 30),
            "Problem blocks of 5 nodes are over the scheduler's limit of small, 4; Warning 5 nodes fit no rule of small in the profile"
        );
        assert_eq!(
            ask("small", 4, 31),
            "Problem a walltime of 31 minutes is over the scheduler's limit of small, 30"
        );
        assert_eq!(ask("gone", 1, 1), "Problem queue gone is not there");
    }
}
