//! The node on which the pilot runs, and no other: one manager, spawned directly.

use crate::{Launch, LaunchPlan, Launcher, LauncherError};
use std::collections::BTreeMap;

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

    fn nodes(
        &self,
        _env: &BTreeMap<String, String>,
        host: &str,
        asked: u32,
    ) -> Result<Vec<String>, LauncherError> {
        // Several "nodes" of one machine let a whole block be tried without a cluster; each gets a manager.
        let name = |n: u32| if asked == 1 { host.to_string() } else { format!("{host}.{n}") };
        if asked == 0 || asked > u32::from(u16::MAX) {
            return Err(LauncherError::NoNodes(format!("a block of {asked} nodes cannot be")));
        }
        Ok((0..asked).map(name).collect())
    }

    fn launch(&self, plan: &LaunchPlan) -> Result<Vec<Launch>, LauncherError> {
        let one = |node: u16| Launch {
            argv: plan.argv.iter().map(|a| a.replace("{node}", &node.to_string())).collect(),
            env: BTreeMap::new(),
            env_remove: Vec::new(),
            nodes: vec![node],
        };
        let count = u16::try_from(plan.nodes.len()).map_err(|_| LauncherError::TooManyNodes {
            launcher: "local",
            has: u32::from(u16::MAX),
            wants: u32::try_from(plan.nodes.len()).unwrap_or(u32::MAX),
        })?;
        Ok((0..count).map(one).collect())
    }

    fn node_variable(&self) -> Option<&'static str> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launcher;

    #[test]
    fn one_manager_a_node_is_spawned_directly() {
        let local = launcher("local").unwrap();
        let nodes = local.nodes(&BTreeMap::new(), "here", 1).unwrap();
        assert_eq!(nodes, ["here"]);
        let argv = ["pf", "manager", "--node", "{node}"].map(String::from).to_vec();
        let two = local.nodes(&BTreeMap::new(), "here", 2).unwrap();
        let launches = local.launch(&LaunchPlan { argv, nodes: two }).unwrap();
        assert_eq!(launches.len(), 2);
        assert_eq!(launches[1].argv, ["pf", "manager", "--node", "1"]);
        assert_eq!(launches[1].nodes, [1]);
        assert!(local.nodes(&BTreeMap::new(), "here", 0).is_err());
    }

    #[test]
    fn an_unknown_launcher_is_named() {
        let error = launcher("srunn").err().unwrap().to_string();
        assert!(error.contains("srunn") && error.contains("local"), "{error}");
    }
}
