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
    let (source, names) = listed(place)?;
    let mut seen = BTreeSet::new();
    let slots = names.into_iter().enumerate();
    let nodes: Vec<BlockNode> = slots
        .filter(|(_, name)| seen.insert(name.clone()))
        .map(|(first_slot, name)| BlockNode { name, first_slot })
        .collect();
    match nodes.len() {
        0 => Err(LauncherError::NoNodes(format!("{source} is empty"))),
        count if count > NODES_MAX => {
            Err(LauncherError::NoNodes(format!("{source} names {count} nodes, at most {NODES_MAX} can be")))
        }
        _ => Ok(nodes),
    }
}

/// Where it was found, and the names with repetitions.
fn listed(place: &Place) -> Result<(&'static str, Vec<String>), LauncherError> {
    let var = |name: &str| place.env.get(name).map(String::as_str);
    let hostlist = |source: &'static str, list: &str| {
        let names = expand(list).map_err(|e| LauncherError::NoNodes(format!("{source}: {e}")))?;
        Ok((source, names))
    };
    if let Some(list) = var("SLURM_JOB_NODELIST") {
        return hostlist("SLURM_JOB_NODELIST", list);
    }
    if let Some(name) = FILE_VARIABLES.iter().find(|name| place.env.contains_key(**name)) {
        let text = place.node_file.as_deref().unwrap_or_default();
        if text.len() > NODE_LIST_BYTES_MAX {
            return Err(LauncherError::NoNodes(format!("the file of {name} is too large")));
        }
        let names =
            text.lines().filter_map(|line| line.split_whitespace().next()).map(String::from).collect();
        return Ok((name, if *name == "LSB_DJOB_HOSTFILE" { without_launch_node(names) } else { names }));
    }
    if let Some(list) = var("LSB_MCPU_HOSTS") {
        // Pairs of name and slots.
        let names = list.split_whitespace().step_by(2).map(String::from).collect();
        return Ok(("LSB_MCPU_HOSTS", without_launch_node(names)));
    }
    if let Some(list) = var("LSB_HOSTS") {
        let names = list.split_whitespace().map(String::from).collect();
        return Ok(("LSB_HOSTS", without_launch_node(names)));
    }
    if let Some(list) = var("COBALT_PARTNAME") {
        return Ok(("COBALT_PARTNAME", nids(list)?));
    }
    let known = "SLURM_JOB_NODELIST, PBS_NODEFILE, LSB_DJOB_HOSTFILE, LSB_MCPU_HOSTS, LSB_HOSTS, COBALT_NODEFILE, COBALT_PARTNAME";
    Err(LauncherError::NoNodes(format!("none of {known} is set: this is no batch job")))
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
        assert_eq!(
            found(&[("PBS_NODEFILE", "/f")], None),
            "error: find the nodes of the block: PBS_NODEFILE is empty"
        );
        assert!(found(&[("SLURM_JOB_NODELIST", "n[2-")], None).contains("SLURM_JOB_NODELIST: brackets"));
        assert!(found(&[("COBALT_PARTNAME", "cc001")], None).contains("COBALT_PARTNAME"));
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
