//! The node on which the pilot runs, and no other: one manager, spawned directly.

use crate::limits::NODES_MAX;
use crate::{Launch, LaunchPlan, Launcher, LauncherError, Place, Stop, node_numbers};

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct Local;

impl Launcher for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn survives_node_loss(&self) -> bool {
        // There is no other node to survive it.
        false
    }

    fn coexists(&self) -> bool {
        true
    }

    fn nodes(&self, place: &Place) -> Result<Vec<String>, LauncherError> {
        let (host, asked) = (&place.host, place.asked);
        // Several "nodes" of one machine let a whole block be tried without a cluster; each gets a manager.
        let name = |n: u32| if asked == 1 { host.clone() } else { format!("{host}.{n}") };
        if asked == 0 || asked as usize > NODES_MAX {
            return Err(LauncherError::NoNodes(format!("a block of {asked} nodes cannot be")));
        }
        Ok((0..asked).map(name).collect())
    }

    fn launch(&self, plan: &LaunchPlan) -> Result<Vec<Launch>, LauncherError> {
        let one = |node: u16| Launch {
            argv: plan.argv.iter().map(|a| a.replace("{node}", &node.to_string())).collect(),
            env: plan.env.clone(),
            env_remove: Vec::new(),
            nodes: vec![node],
        };
        Ok(node_numbers("local", &plan.nodes)?.into_iter().map(one).collect())
    }

    fn stop(&self) -> Stop {
        Stop { drain: Stop::TERM, kill: Stop::KILL }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launcher;
    use std::collections::BTreeMap;

    #[test]
    fn one_manager_a_node_is_spawned_directly() {
        let local = launcher("local").unwrap();
        let place = |asked| Place { host: "here".into(), asked, ..Place::default() };
        assert_eq!(local.nodes(&place(1)).unwrap(), ["here"]);
        let argv = ["pf", "manager", "--node", "{node}"].map(String::from).to_vec();
        let two = local.nodes(&place(2)).unwrap();
        let launches = local.launch(&LaunchPlan { argv, nodes: two, env: BTreeMap::new() }).unwrap();
        assert_eq!(launches.len(), 2);
        assert_eq!(launches[1].argv, ["pf", "manager", "--node", "1"]);
        assert_eq!(launches[1].nodes, [1]);
        assert!(local.nodes(&place(0)).is_err());
    }

    #[test]
    fn every_name_is_a_launcher_of_that_name() {
        for name in crate::NAMES {
            assert_eq!(launcher(name).unwrap().name(), name);
        }
    }

    #[test]
    fn an_unknown_launcher_is_named() {
        let error = launcher("srunn").err().unwrap().to_string();
        assert!(error.contains("srunn") && error.contains("local, srun"), "{error}");
    }
}
