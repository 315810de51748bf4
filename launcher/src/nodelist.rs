//! Which nodes a batch job has, from what its scheduler left in the environment and in a file. Every launcher but `local` uses it:
//! the list belongs to the scheduler, whatever starts the processes.

use crate::hostlist::expand;
use crate::limits::{NODE_LIST_BYTES_MAX, NODES_MAX};
use crate::{BlockNode, LauncherError, Place};
use std::collections::{BTreeMap, BTreeSet};

/// Variables that name a file of the job's nodes, one a line, repeated for each slot (PBS, LSF, Cobalt on clusters).
const FILE_VARIABLES: [&str; 3] = ["PBS_NODEFILE", "LSB_DJOB_HOSTFILE", "COBALT_NODEFILE"];

/// The file that holds the job's nodes, if this scheduler writes one: its text goes into [`Place::node_file`].
#[must_use]
pub fn node_file(env: &BTreeMap<String, String>) -> Option<&str> {
    if env.contains_key("SLURM_JOB_NODELIST") {
        return None;
    }
    FILE_VARIABLES.iter().find_map(|name| env.get(*name)).map(String::as_str)
}

/// The job's nodes in the scheduler's order, each once.
///
/// # Errors
/// When nothing in the environment says it, or says it in a way that is not understood.
pub fn nodes(place: &Place) -> Result<Vec<BlockNode>, LauncherError> {
    let Listed { source, names, first_is_here } = listed(place)?;
    let here = here(&names, place, first_is_here);
    let mut seen = BTreeSet::new();
    let slots = names.into_iter().enumerate();
    let nodes: Vec<BlockNode> = slots
        .filter(|(_, name)| seen.insert(name.clone()))
        .map(|(first_slot, name)| BlockNode { is_here: here == Some(first_slot), name, first_slot })
        .collect();
    match nodes.len() {
        0 => Err(LauncherError::NoNodes(format!("{source} is empty"))),
        count if count > NODES_MAX => {
            Err(LauncherError::NoNodes(format!("{source} names {count} nodes, at most {NODES_MAX} can be")))
        }
        _ => Ok(nodes),
    }
}

/// Which name is that of the pilot's own host: schedulers and hosts may name it with or without its domain, or by names that have nothing in
/// common. Then it is the first, where the scheduler runs the script there.
fn here(names: &[String], place: &Place, first_is_here: bool) -> Option<usize> {
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let named = names.iter().position(|name| short(name) == short(&place.host));
    named.filter(|_| !place.host.is_empty()).or((first_is_here && !names.is_empty()).then_some(0))
}

/// What a scheduler says of a job's nodes.
struct Listed {
    /// The variable in which it was found.
    source: &'static str,
    /// Names, with repetitions.
    names: Vec<String>,
    /// Whether the batch script runs on the first of them: so it is said of PBS's mother superior, LSF's first execution host, and the clusters of Cobalt.
    /// Not of Slurm, where the pilot may be beside an allocation (`salloc`), nor of machines with launch nodes.
    first_is_here: bool,
}

fn listed(place: &Place) -> Result<Listed, LauncherError> {
    let var = |name: &str| place.env.get(name).map(String::as_str);
    if let Some(list) = var("SLURM_JOB_NODELIST") {
        let names = expand(list).map_err(|e| LauncherError::NoNodes(format!("SLURM_JOB_NODELIST: {e}")))?;
        return Ok(Listed { source: "SLURM_JOB_NODELIST", names, first_is_here: false });
    }
    if let Some(source) = FILE_VARIABLES.into_iter().find(|name| place.env.contains_key(*name)) {
        let names = in_file(source, place)?;
        return Ok(match source {
            "LSB_DJOB_HOSTFILE" => of_lsf(source, names),
            _ => Listed { source, names, first_is_here: true },
        });
    }
    if let Some(list) = var("LSB_MCPU_HOSTS") {
        // Pairs of name and slots.
        let names = list.split_whitespace().step_by(2).map(String::from).collect();
        return Ok(of_lsf("LSB_MCPU_HOSTS", names));
    }
    if let Some(list) = var("LSB_HOSTS") {
        return Ok(of_lsf("LSB_HOSTS", list.split_whitespace().map(String::from).collect()));
    }
    if let Some(list) = var("COBALT_PARTNAME") {
        return Ok(Listed { source: "COBALT_PARTNAME", names: nids(list)?, first_is_here: false });
    }
    let known = "SLURM_JOB_NODELIST, PBS_NODEFILE, LSB_DJOB_HOSTFILE, LSB_MCPU_HOSTS, LSB_HOSTS, COBALT_NODEFILE, COBALT_PARTNAME";
    Err(LauncherError::NoNodes(format!("none of {known} is set: this is no batch job")))
}

/// The names in the scheduler's file. A block of one node does without: Cobalt has been seen to name a file that it had taken away again.
fn in_file(variable: &'static str, place: &Place) -> Result<Vec<String>, LauncherError> {
    let Some(text) = place.node_file.as_deref() else {
        if place.asked == 1 && !place.host.is_empty() {
            return Ok(vec![place.host.clone()]);
        }
        return Err(LauncherError::NoNodes(format!("the file of {variable} cannot be read")));
    };
    if text.len() > NODE_LIST_BYTES_MAX {
        return Err(LauncherError::NoNodes(format!("the file of {variable} is too large")));
    }
    Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(String::from).collect())
}

fn of_lsf(source: &'static str, names: Vec<String>) -> Listed {
    let all = names.len();
    let names = without_launch_node(names);
    Listed { source, first_is_here: names.len() == all, names }
}

/// On CORAL machines (Summit, Lassen) the script runs on a shared node that is listed first, and has no part in the work.
fn without_launch_node(mut names: Vec<String>) -> Vec<String> {
    let launch = |name: &String| name.starts_with("batch") || name.starts_with("login");
    if names.first().is_some_and(launch) && names.iter().any(|name| !launch(name)) {
        names.retain(|name| !launch(name));
    }
    names
}

/// Theta's form, `3808-3811,3834`: numbers of Cray nodes, whose names are `nid03808` and so on.
fn nids(list: &str) -> Result<Vec<String>, LauncherError> {
    let wrong = |e| LauncherError::NoNodes(format!("COBALT_PARTNAME: {e}"));
    let numbers = expand(&format!("[{}]", list.trim())).map_err(wrong)?;
    Ok(numbers.into_iter().map(|number| format!("nid{number:0>5}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(env: &[(&str, &str)], file: Option<&str>) -> String {
        let env = env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let place = Place { env, host: "here".into(), asked: 1, node_file: file.map(String::from) };
        let names =
            |nodes: Vec<BlockNode>| nodes.into_iter().map(|node| node.name).collect::<Vec<_>>().join(" ");
        nodes(&place).map_or_else(|e| format!("error: {e}"), names)
    }

    #[test]
    fn the_first_line_of_a_node_is_known() {
        let env = BTreeMap::from([("PBS_NODEFILE".into(), "/f".into())]);
        let place = Place { env, node_file: Some("a\na\nb\nb\na\n".into()), ..Place::default() };
        let slots: Vec<usize> = nodes(&place).unwrap().iter().map(|node| node.first_slot).collect();
        assert_eq!(slots, [0, 2]);
    }

    #[test]
    fn each_scheduler_is_read_in_its_own_form() {
        assert_eq!(found(&[("SLURM_JOB_NODELIST", "n[2-3]")], None), "n2 n3");
        let pbs = Some("pbsn1\npbsn1\npbsn2\n");
        assert_eq!(found(&[("PBS_NODEFILE", "/var/spool/pbs/aux/1.pbshead")], pbs), "pbsn1 pbsn2");
        assert_eq!(
            found(&[("COBALT_NODEFILE", "/var/tmp/cobalt.17")], Some("cc001\ncc004\n")),
            "cc001 cc004"
        );
        assert_eq!(
            found(&[("COBALT_PARTNAME", "3808-3810,3834")], None),
            "nid03808 nid03809 nid03810 nid03834"
        );
        assert_eq!(found(&[("LSB_MCPU_HOSTS", "h2 2 h1 2 ")], None), "h2 h1");
        assert_eq!(found(&[("LSB_HOSTS", "h2 h2 h1 h1")], None), "h2 h1");
    }

    #[test]
    fn the_launch_node_of_coral_takes_no_part() {
        let file = Some("batch3\nh41n08\nh41n08\nh41n09\nh41n09\n");
        assert_eq!(found(&[("LSB_DJOB_HOSTFILE", "/f"), ("LSB_HOSTS", "x")], file), "h41n08 h41n09");
        assert_eq!(found(&[("LSB_MCPU_HOSTS", "batch3 1 h41n08 42 ")], None), "h41n08");
        // A cluster whose only node is called so.
        assert_eq!(found(&[("LSB_HOSTS", "batch1 batch1")], None), "batch1");
    }

    #[test]
    fn what_says_nothing_is_an_error_that_names_it() {
        assert!(found(&[], None).contains("this is no batch job"));
        let empty = found(&[("PBS_NODEFILE", "/f")], Some("\n"));
        assert_eq!(empty, "error: find the nodes of the block: PBS_NODEFILE is empty");
        assert!(found(&[("SLURM_JOB_NODELIST", "n[2-")], None).contains("SLURM_JOB_NODELIST: brackets"));
        assert!(found(&[("COBALT_PARTNAME", "cc001")], None).contains("COBALT_PARTNAME"));
    }

    #[test]
    fn the_pilots_own_node_is_known_by_name_or_place() {
        let here = |env: &[(&str, &str)], file: Option<&str>, host: &str| {
            let env = env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            let place = Place { env, host: host.into(), asked: 2, node_file: file.map(String::from) };
            let nodes = nodes(&place).unwrap();
            let here: Vec<usize> = (0..nodes.len()).filter(|n| nodes[*n].is_here).collect();
            here
        };
        let pbs = [("PBS_NODEFILE", "/f")];
        assert_eq!(here(&pbs, Some("n1\nn1\nn2\n"), "N2.cluster.org"), [1]);
        // In a container the host's name has nothing to do with what the server calls it.
        assert_eq!(here(&pbs, Some("pbs\npbs\nn2\n"), "3f2a9bd1c0de"), [0]);
        assert_eq!(here(&[("COBALT_NODEFILE", "/f")], Some("cc001\ncc004\n"), "login"), [0]);
        assert_eq!(here(&[("LSB_MCPU_HOSTS", "h2 2 h1 2 ")], None, "x"), [0]);
        // Beside its nodes: an allocation by salloc, a launch node.
        let none: [usize; 0] = [];
        assert_eq!(here(&[("SLURM_JOB_NODELIST", "n[1-2]")], None, "login"), none);
        assert_eq!(here(&[("LSB_MCPU_HOSTS", "batch3 1 h41n08 42 ")], None, "batch3"), none);
        assert_eq!(here(&[("COBALT_PARTNAME", "3808-3809")], None, "thetamom1"), none);
    }

    #[test]
    fn a_file_that_is_gone_is_missed_by_blocks_of_several_nodes_alone() {
        let env = BTreeMap::from([("COBALT_NODEFILE".into(), "/tmp/gone".into())]);
        let place = |asked| Place { env: env.clone(), host: "cc001".into(), asked, node_file: None };
        let one = nodes(&place(1)).unwrap();
        assert_eq!(one, [BlockNode { name: "cc001".into(), first_slot: 0, is_here: true }]);
        assert!(
            nodes(&place(2)).unwrap_err().to_string().ends_with("the file of COBALT_NODEFILE cannot be read")
        );
    }

    #[test]
    fn only_a_scheduler_that_writes_a_file_has_one() {
        let env =
            |vars: &[&str]| vars.iter().map(|v| (v.to_string(), format!("/{v}"))).collect::<BTreeMap<_, _>>();
        assert_eq!(node_file(&env(&["PBS_NODEFILE"])), Some("/PBS_NODEFILE"));
        // Some sites set PBS_NODEFILE inside Slurm jobs, for old scripts.
        assert_eq!(node_file(&env(&["PBS_NODEFILE", "SLURM_JOB_NODELIST"])), None);
    }

    proptest! {
        #[test]
        fn any_text_gives_names_or_an_error(text in "\\PC{0,80}|[a-b0-9 \n,-]{0,80}") {
            for variable in ["SLURM_JOB_NODELIST", "LSB_MCPU_HOSTS", "LSB_HOSTS", "COBALT_PARTNAME", "PBS_NODEFILE"] {
                found(&[(variable, &text)], Some(&text));
            }
        }
    }
}
