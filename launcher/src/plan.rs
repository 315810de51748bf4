//! What is to be started: managers, one a node, or the ranks of a program on some of the nodes. Written by the pilot, read by each launcher.

use crate::LauncherError;
use std::collections::BTreeMap;
use std::fmt::Write;

/// A node of the block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockNode {
    /// Its name, as the scheduler has it.
    pub name: String,
    /// Position of its first line in the scheduler's list, which names a node once for each slot.
    pub first_slot: usize,
    /// Whether it is the host on which the pilot runs.
    pub is_here: bool,
}

/// What is to run once on each node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchPlan {
    /// Program and arguments. `{node}` becomes the node's number, or, where one command starts them all, the name of the variable in which
    /// each process finds it.
    pub argv: Vec<String>,
    /// The nodes, as [`Launcher::nodes`](crate::Launcher::nodes) named them.
    pub nodes: Vec<BlockNode>,
    /// Variables that each process must have, beside those that the launcher passes on. Values without blanks and quotes.
    pub env: BTreeMap<String, String>,
}

impl LaunchPlan {
    /// The argv with `{node}` replaced.
    pub(crate) fn argv_for(&self, node: &str) -> Vec<String> {
        self.argv.iter().map(|arg| arg.replace("{node}", node)).collect()
    }

    /// Numbers of all nodes.
    pub(crate) fn numbers(&self, launcher: &'static str) -> Result<Vec<u16>, LauncherError> {
        let has = crate::limits::NODES_MAX;
        let too_many = |_| LauncherError::TooManyNodes { launcher, has, wants: self.nodes.len() };
        Ok((0..u16::try_from(self.nodes.len()).map_err(too_many)?).collect())
    }
}

/// One process that the pilot starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Launch {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables to set on top of the pilot's own.
    pub env: BTreeMap<String, String>,
    /// Variables to take away (inherited step variables confuse nested launchers).
    pub env_remove: Vec<String>,
    /// Numbers of the nodes whose managers live below this process: if it ends, they have ended. Empty for ranks.
    pub nodes: Vec<u16>,
    /// A file that `{file}` in the argv names, to be written before, in the block's folder.
    pub file: Option<String>,
}

/// What one rank may use of its node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RankShare {
    /// Hardware threads, by the kernel's number.
    pub pus: Vec<u32>,
    /// GPUs, by their number in [`RankPlan::gpu_variable`].
    pub gpus: Vec<u32>,
}

/// A node that takes part in a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankNode {
    /// Its number in the block.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// Shares of its ranks, by local rank.
    pub ranks: Vec<RankShare>,
}

/// A program of several ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankPlan {
    /// How the shim is called: `[PF, "rank"]`.
    pub shim: Vec<String>,
    /// The user's program and arguments.
    pub argv: Vec<String>,
    /// Nodes in the block's order, each with the same number of ranks, placed in blocks.
    pub nodes: Vec<RankNode>,
    /// Variables of the program.
    pub env: BTreeMap<String, String>,
    /// The attempt, `3.17`: the tag by which its processes are found, since they are nobody's children.
    pub attempt: String,
    /// Variable that shows GPUs to the program, if it has some: CUDA_VISIBLE_DEVICES, ROCR_VISIBLE_DEVICES or ZE_AFFINITY_MASK.
    pub gpu_variable: Option<&'static str>,
}

impl RankPlan {
    /// Ranks on each node.
    ///
    /// # Errors
    /// When there are none, or nodes differ: launchers place by one number.
    pub fn per_node(&self) -> Result<usize, LauncherError> {
        let per_node = self.nodes.first().map_or(0, |node| node.ranks.len());
        if per_node == 0 || self.nodes.iter().any(|node| node.ranks.len() != per_node) {
            return Err(LauncherError::UnevenRanks);
        }
        Ok(per_node)
    }

    /// Names of its nodes, set apart by commas.
    pub(crate) fn names(&self) -> String {
        self.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(",")
    }

    /// Shim and program: what the launcher starts as every rank.
    pub(crate) fn shimmed(&self, family: &str) -> Result<Vec<String>, LauncherError> {
        let mut argv = self.shim.clone();
        let per_node = self.per_node()?;
        argv.extend(["--family".into(), family.into(), "--attempt".into(), self.attempt.clone()]);
        argv.extend(["--per-node".into(), per_node.to_string()]);
        argv.extend(["--size".into(), (per_node * self.nodes.len()).to_string()]);
        argv.extend(["--pus".into(), encode_shares(&self.nodes, |share| &share.pus)]);
        if let Some(variable) = self.gpu_variable {
            argv.extend([
                "--gpus".into(),
                format!("{variable}={}", encode_shares(&self.nodes, |share| &share.gpus)),
            ]);
        }
        argv.push("--".into());
        argv.extend(self.argv.iter().cloned());
        Ok(argv)
    }
}

/// Shares of all nodes in one word: ranks of a node set apart by `/`, nodes by `+`, equal neighbours as `N*`, numbers as `0-3,8`.
fn encode_shares(nodes: &[RankNode], of: impl Fn(&RankShare) -> &Vec<u32>) -> String {
    let mut runs: Vec<(usize, String)> = Vec::new();
    for node in nodes {
        let text = node.ranks.iter().map(|share| number_list(of(share))).collect::<Vec<_>>().join("/");
        match runs.last_mut() {
            Some((count, last)) if *last == text => *count += 1,
            _ => runs.push((1, text)),
        }
    }
    let run =
        |(count, text): &(usize, String)| if *count == 1 { text.clone() } else { format!("{count}*{text}") };
    runs.iter().map(run).collect::<Vec<_>>().join("+")
}

/// `0-3,8`, in the order given.
fn number_list(numbers: &[u32]) -> String {
    let mut text = String::new();
    let mut at = 0;
    while let Some(&first) = numbers.get(at) {
        let run =
            numbers[at..].iter().zip(first..).take_while(|(number, expected)| **number == *expected).count();
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = match run {
            1 => write!(text, "{comma}{first}"),
            _ => write!(text, "{comma}{first}-{}", first as usize + run - 1),
        };
        at += run;
    }
    text
}

/// Numbers of one rank in what [`RankPlan`] gave the shim: of the node at `node`, the rank `local`.
///
/// # Errors
/// A text that says what is missing or not understood.
pub fn decode_share(text: &str, node: usize, local: usize) -> Result<Vec<u32>, String> {
    let mut skip = node;
    for run in text.split('+') {
        let (count, ranks) = match run.split_once('*') {
            Some((count, ranks)) => {
                (count.parse::<usize>().map_err(|_| format!("{count:?} is no number"))?, ranks)
            }
            None => (1, run),
        };
        if skip < count {
            let list = ranks
                .split('/')
                .nth(local)
                .ok_or_else(|| format!("no share for rank {local} of node {node}"))?;
            return numbers_of(list);
        }
        skip -= count;
    }
    Err(format!("no share for node {node}"))
}

/// The reverse of [`number_list`].
fn numbers_of(list: &str) -> Result<Vec<u32>, String> {
    let mut numbers = Vec::new();
    for range in list.split(',').filter(|range| !range.is_empty()) {
        let wrong = || format!("{range:?} is no range of numbers");
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) =
            (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
        if first > last || last - first > NUMBERS_MAX || numbers.len() > NUMBERS_MAX as usize {
            return Err(wrong());
        }
        numbers.extend(first..=last);
    }
    Ok(numbers)
}

/// Hardware threads of one rank: above Linux' own limit.
const NUMBERS_MAX: u32 = 65_535;

/// Divides what a program holds of a node among its local ranks: whole cores, disjoint, in order, the first ranks getting what is left over. With
/// fewer cores than ranks several ranks share one.
#[must_use]
pub fn shares(cores: &[Vec<u32>], gpus: &[u32], ranks: usize) -> Vec<RankShare> {
    let part = |count: usize, rank: usize| -> std::ops::Range<usize> {
        if count == 0 {
            return 0..0;
        }
        if count < ranks {
            let at = rank * count / ranks;
            return at..at + 1;
        }
        let (each, over) = (count / ranks, count % ranks);
        let from = rank * each + rank.min(over);
        from..from + each + usize::from(rank < over)
    };
    (0..ranks)
        .map(|rank| RankShare {
            pus: cores[part(cores.len(), rank)].iter().flatten().copied().collect(),
            gpus: gpus[part(gpus.len(), rank)].to_vec(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(number: u16, ranks: Vec<RankShare>) -> RankNode {
        RankNode { number, name: format!("n{number}"), ranks }
    }

    #[test]
    fn shares_are_short_in_words() {
        let cores: Vec<Vec<u32>> = (0..8).map(|core| vec![core, core + 64]).collect();
        let shares = super::shares(&cores, &[0, 1, 2, 3], 2);
        let nodes: Vec<RankNode> = (0..1_000).map(|n| node(n, shares.clone())).collect();
        assert_eq!(encode_shares(&nodes, |share| &share.gpus), "1000*0-1/2-3");
        assert_eq!(encode_shares(&nodes[..1], |share| &share.pus), "0,64,1,65,2,66,3,67/4,68,5,69,6,70,7,71");
    }

    #[test]
    fn more_ranks_than_cores_share_and_a_remainder_is_spread() {
        let cores: Vec<Vec<u32>> = (0..3).map(|core| vec![core]).collect();
        let pus = |ranks| shares(&cores, &[], ranks).into_iter().map(|share| share.pus).collect::<Vec<_>>();
        assert_eq!(pus(2), [vec![0, 1], vec![2]]);
        assert_eq!(pus(6), [vec![0], vec![0], vec![1], vec![1], vec![2], vec![2]]);
        assert!(shares(&[], &[], 2).iter().all(|share| share.pus.is_empty()));
    }

    #[test]
    fn what_is_not_there_is_said() {
        assert_eq!(decode_share("2*0/1+5/6", 2, 1), Ok(vec![6]));
        assert_eq!(decode_share("2*0/1+5/6", 3, 0), Err("no share for node 3".into()));
        assert_eq!(decode_share("0/1", 0, 2), Err("no share for rank 2 of node 0".into()));
        assert!(decode_share("x*0", 0, 0).is_err() && decode_share("3-1", 0, 0).is_err());
    }

    proptest! {
        #[test]
        fn every_rank_reads_its_own_share(
            of in proptest::collection::vec(proptest::collection::vec(proptest::collection::vec(0u32..300, 0..6), 3), 1..12)
        ) {
            let ranks = |node: &Vec<Vec<u32>>| node.iter().map(|pus| RankShare { pus: pus.clone(), gpus: vec![] }).collect();
            let nodes: Vec<RankNode> = of.iter().zip(0..).map(|(shares, n)| node(n, ranks(shares))).collect();
            let text = encode_shares(&nodes, |share| &share.pus);
            for (at, shares) in of.iter().enumerate() {
                for (local, share) in shares.iter().enumerate() {
                    prop_assert_eq!(decode_share(&text, at, local), Ok(share.clone()));
                }
            }
        }

        #[test]
        fn any_text_is_a_share_or_an_error(text in "[0-9*/+,-]{0,40}|\\PC{0,30}", node in 0usize..5, local in 0usize..5) {
            let _ = decode_share(&text, node, local);
        }

        #[test]
        fn shares_are_disjoint_and_leave_nothing(cores in 1usize..70, ranks in 1usize..70) {
            let all: Vec<Vec<u32>> = (0..cores as u32).map(|core| vec![core, core + 100]).collect();
            let shares = shares(&all, &[], ranks);
            prop_assert!(shares.iter().all(|share| !share.pus.is_empty()));
            let mut seen: Vec<u32> = shares.iter().flat_map(|share| share.pus.clone()).collect();
            let given = seen.len();
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), 2 * cores);
            prop_assert!(ranks > cores || given == 2 * cores);
        }
    }
}
