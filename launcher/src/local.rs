//! The node on which the pilot runs, and no other: one manager, spawned directly.

use crate::limits::NODES_MAX;
use crate::{
    BlockNode, Launch, LaunchPlan, Launcher, LauncherError, NODE_NAME_VARIABLE, Place, RankPlan, Stop,
};

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct Local;

impl Launcher for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn coexists(&self) -> bool {
        true
    }

    fn is_direct(&self) -> bool {
        true
    }

    fn nodes(&self, place: &Place) -> Result<Vec<BlockNode>, LauncherError> {
        let (host, asked) = (&place.host, place.asked);
        // Several "nodes" of one machine let a whole block be tried without a cluster; each gets a manager.
        let name = |n: u32| if asked == 1 { host.clone() } else { format!("{host}.{n}") };
        if asked == 0 || asked as usize > NODES_MAX {
            return Err(LauncherError::NoNodes(format!("a block of {asked} nodes cannot be")));
        }
        Ok((0..asked).map(|n| BlockNode { name: name(n), first_slot: n as usize, is_here: true }).collect())
    }

    fn launch(&self, plan: &LaunchPlan) -> Result<Vec<Launch>, LauncherError> {
        let one = |(node, number): (&BlockNode, u16)| {
            let mut env = plan.env.clone();
            env.insert(NODE_NAME_VARIABLE.into(), node.name.clone());
            Launch { argv: plan.argv_for(&number.to_string()), env, nodes: vec![number], ..Launch::default() }
        };
        Ok(plan.nodes.iter().zip(plan.numbers("local")?).map(one).collect())
    }

    fn ranks(&self, _: &RankPlan) -> Result<Launch, LauncherError> {
        Err(LauncherError::NoRanks("local"))
    }

    fn stop(&self) -> Stop {
        Stop { drain: Some(Stop::TERM), warn: Some(Stop::USR2), kill: Stop::KILL }
    }
}
