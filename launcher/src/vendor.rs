//! Launchers of single makers and centres: jsrun (IBM, CORAL machines), aprun (Cray ALPS), ibrun (TACC). None of them could be tried here: they follow their man pages and
//! user guides.

use crate::{Launch, LaunchPlan, Launcher, LauncherError, RankPlan, Stop};
use std::fmt::Write;

/// IBM's launcher on machines with LSF and JSM. It gives out cores of its own: what the managers hold, no other jsrun gets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Jsrun;

impl Launcher for Jsrun {
    fn name(&self) -> &'static str {
        "jsrun"
    }

    fn coexists(&self) -> bool {
        false
    }

    /// One resource set a host with all that it has.
    fn launch(&self, plan: &LaunchPlan) -> Result<Vec<Launch>, LauncherError> {
        let mut argv = vec!["jsrun".to_string(), "--nrs".into(), plan.nodes.len().to_string()];
        let whole = [
            "--rs_per_host",
            "1",
            "--tasks_per_rs",
            "1",
            "--cpu_per_rs",
            "ALL_CPUS",
            "--gpu_per_rs",
            "ALL_GPUS",
            "--bind",
            "none",
        ];
        argv.extend(whole.map(String::from));
        argv.extend(plan.argv_for("JSM_NAMESPACE_RANK"));
        Ok(vec![Launch {
            argv,
            env: plan.env.clone(),
            nodes: plan.numbers(self.name())?,
            ..Launch::default()
        }])
    }

    /// Ranks are placed by a file, the only way to name hosts and cores.
    fn ranks(&self, plan: &RankPlan) -> Result<Launch, LauncherError> {
        let mut argv = ["jsrun", "--erf_input", "{file}"].map(String::from).to_vec();
        argv.extend(plan.shimmed("jsm")?);
        let mut file = String::from("cpu_index_using: physical\n");
        let ranks = plan.nodes.iter().flat_map(|node| node.ranks.iter().map(move |share| (node, share)));
        for (rank, (node, share)) in ranks.enumerate() {
            let list = |numbers: &[u32]| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            let gpu = if share.gpus.is_empty() {
                String::new()
            } else {
                format!(" ; gpu: {{{}}}", list(&share.gpus))
            };
            // Hosts are counted from 1; host 0 is the launch node. Writing to a string cannot fail.
            let host = u32::from(node.number) + 1;
            let _ = writeln!(file, "rank: {rank} : {{ host: {host} ; cpu: {{{}}}{gpu} }}", list(&share.pus));
        }
        Ok(Launch { argv, env: plan.env.clone(), file: Some(file), ..Launch::default() })
    }

    fn stop(&self) -> Stop {
        Stop::PASSES_USER_SIGNALS
    }
}

/// Cray's launcher on XC and older. A node runs one aprun at a time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Aprun;

impl Aprun {
    /// aprun names nodes by number: 3808 for nid03808.
    fn nids<'a>(names: impl Iterator<Item = &'a str>) -> Result<String, LauncherError> {
        let nid = |name: &str| {
            let digits = name.strip_prefix("nid").unwrap_or(name).trim_start_matches('0');
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(LauncherError::Nodes { launcher: "aprun", why: format!("{name:?} is no nid") });
            }
            Ok(digits.to_string())
        };
        Ok(names.map(nid).collect::<Result<Vec<_>, _>>()?.join(","))
    }

    fn command(total: usize, per_node: usize, nids: String, program: Vec<String>) -> Vec<String> {
        let mut argv =
            vec!["aprun".to_string(), "-n".into(), total.to_string(), "-N".into(), per_node.to_string()];
        argv.extend(["-L".into(), nids, "-cc".into(), "none".into()]);
        argv.extend(program);
        argv
    }
}

impl Launcher for Aprun {
    fn name(&self) -> &'static str {
        "aprun"
    }

    fn coexists(&self) -> bool {
        false
    }

    fn launch(&self, plan: &LaunchPlan) -> Result<Vec<Launch>, LauncherError> {
        let nids = Aprun::nids(plan.nodes.iter().map(|node| node.name.as_str()))?;
        let argv = Aprun::command(plan.nodes.len(), 1, nids, plan.argv_for("ALPS_APP_PE"));
        Ok(vec![Launch {
            argv,
            env: plan.env.clone(),
            nodes: plan.numbers(self.name())?,
            ..Launch::default()
        }])
    }

    fn ranks(&self, plan: &RankPlan) -> Result<Launch, LauncherError> {
        let per_node = plan.per_node()?;
        let nids = Aprun::nids(plan.nodes.iter().map(|node| node.name.as_str()))?;
        let argv = Aprun::command(plan.nodes.len() * per_node, per_node, nids, plan.shimmed("alps")?);
        Ok(Launch { argv, env: plan.env.clone(), ..Launch::default() })
    }

    fn stop(&self) -> Stop {
        Stop::PASSES_USER_SIGNALS
    }
}

/// TACC's wrapper, which finds out which MPI is loaded; it is taken for Intel MPI, their default. It counts places in the job by tasks a node.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ibrun;

impl Ibrun {
    fn command(
        total: usize,
        per_node: usize,
        offset: usize,
        program: Vec<String>,
        mut launch: Launch,
    ) -> Launch {
        launch.argv =
            vec!["ibrun".to_string(), "-n".into(), total.to_string(), "-o".into(), offset.to_string()];
        launch.argv.extend(program);
        launch.env.insert("IBRUN_TASKS_PER_NODE".into(), per_node.to_string());
        launch.env.insert("I_MPI_PIN".into(), "0".into());
        launch
    }
}

impl Launcher for Ibrun {
    fn name(&self) -> &'static str {
        "ibrun"
    }

    fn coexists(&self) -> bool {
        true
    }

    fn launch(&self, plan: &LaunchPlan) -> Result<Vec<Launch>, LauncherError> {
        let launch = Launch { env: plan.env.clone(), nodes: plan.numbers(self.name())?, ..Launch::default() };
        Ok(vec![Ibrun::command(plan.nodes.len(), 1, 0, plan.argv_for("PMI_RANK"), launch)])
    }

    /// Nodes are named by an offset alone, so they must be neighbours in the block.
    fn ranks(&self, plan: &RankPlan) -> Result<Launch, LauncherError> {
        let (per_node, first) = (plan.per_node()?, plan.nodes.first().map_or(0, |node| node.number));
        if plan.nodes.iter().zip(first..).any(|(node, expected)| node.number != expected) {
            let why = "it can only be told of nodes that follow each other in the block".into();
            return Err(LauncherError::Nodes { launcher: "ibrun", why });
        }
        let launch = Launch { env: plan.env.clone(), ..Launch::default() };
        let offset = usize::from(first) * per_node;
        Ok(Ibrun::command(plan.nodes.len() * per_node, per_node, offset, plan.shimmed("hydra")?, launch))
    }

    fn stop(&self) -> Stop {
        Stop { warn: Some(Stop::USR1), ..Stop::PASSES_USER_SIGNALS }
    }
}
