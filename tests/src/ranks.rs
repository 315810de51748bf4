//! Runs programs of several ranks as the pilot would: the launcher's own command, the rank shim, several at once.

use crate::site::{Ran, pf_binary};
use pf_launcher::{RankNode, RankPlan, launcher, shares};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// A program of several ranks.
#[derive(Debug, Clone)]
pub struct Program {
    /// Distinguishes it: its ranks make a file of this name, and see that of the others' first.
    pub name: String,
    /// What each rank runs.
    pub argv: Vec<String>,
    /// Nodes, as the launcher knows them.
    pub hosts: Vec<String>,
    /// CPUs that it has on each node; each is taken for a core.
    pub cpus: Vec<u32>,
    /// Ranks on each node.
    pub ranks: usize,
}

/// Runs programs at the same time. `tools` is first in PATH and holds their files; `prefix` stands before each command.
///
/// # Panics
/// When one of them cannot be started.
#[must_use]
pub fn run_programs(name: &str, tools: &Path, prefix: &[&str], programs: &[Program]) -> Vec<Ran> {
    let launcher = launcher(name).expect("a launcher of this name");
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap_or_default());
    let mark = |program: &Program| tools.join(format!("here-{}", program.name)).display().to_string();
    let started: Vec<_> = programs
        .iter()
        .enumerate()
        .map(|(at, program)| {
            let other = &programs[(at + 1) % programs.len()];
            let marks = [("HERE", program), ("OTHER", other)].map(|(name, of)| (name.to_string(), mark(of)));
            let launch = launcher.ranks(&plan(program, marks.into())).expect("the launcher can start it");
            let mut words: Vec<String> = prefix.iter().map(|word| (*word).to_string()).collect();
            if !launch.env_remove.is_empty() {
                words.push("env".into());
                words.extend(launch.env_remove.iter().flat_map(|name| ["-u".to_string(), name.clone()]));
            }
            words.extend(launch.argv);
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]).env("PATH", &path).envs(&launch.env);
            command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap_or_else(|error| panic!("{words:?}: {error}"))
        })
        .collect();
    started.into_iter().map(|child| Ran::new(&child.wait_with_output().expect("it ends"))).collect()
}

fn plan(program: &Program, env: BTreeMap<String, String>) -> RankPlan {
    let cores: Vec<Vec<u32>> = program.cpus.iter().map(|cpu| vec![*cpu]).collect();
    let ranks = shares(&cores, &[], program.ranks);
    let node = |(number, name): (u16, &String)| RankNode { number, name: name.clone(), ranks: ranks.clone() };
    RankPlan {
        shim: vec![pf_binary().display().to_string(), "rank".into()],
        argv: program.argv.clone(),
        nodes: (0..).zip(&program.hosts).map(node).collect(),
        env,
        attempt: "1.1".into(),
        gpu_variable: None,
    }
}

/// CPUs that this process may use.
///
/// # Panics
/// When the kernel does not say.
#[must_use]
pub fn allowed_cpus() -> Vec<u32> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("the kernel tells");
    let cpus = (0..nix::sched::CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false));
    cpus.filter_map(|cpu| u32::try_from(cpu).ok()).collect()
}

impl Ran {
    /// CPUs in the lines `bound LIST` of its ranks.
    ///
    /// # Panics
    /// When such a line holds no list.
    #[must_use]
    pub fn bound(&self) -> Vec<u32> {
        let lines = self.stdout.lines().filter_map(|line| line.trim().strip_prefix("bound "));
        let range = |text: &str| -> Vec<u32> {
            let (low, high) = text.split_once('-').unwrap_or((text, text));
            let number = |text: &str| {
                text.trim().parse::<u32>().unwrap_or_else(|_| panic!("{text:?} in {}", self.stdout))
            };
            (number(low)..=number(high)).collect()
        };
        lines.flat_map(|line| line.split(',').flat_map(range).collect::<Vec<_>>()).collect()
    }
}
