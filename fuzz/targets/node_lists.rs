//! Lists of nodes: every form in which a scheduler tells a job's nodes, Slurm's compressed one, and what ranks are told of their shares.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pf_launcher::{Place, decode_share, hostlist, nodelist};
use std::collections::BTreeMap;

const VARIABLES: [&str; 7] = [
    "SLURM_JOB_NODELIST",
    "PBS_NODEFILE",
    "LSB_DJOB_HOSTFILE",
    "LSB_MCPU_HOSTS",
    "LSB_HOSTS",
    "COBALT_NODEFILE",
    "COBALT_PARTNAME",
];

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data).into_owned();
    for variable in VARIABLES {
        let env = BTreeMap::from([(variable.to_string(), text.clone())]);
        let place = Place { env, host: "n1".into(), asked: 1, node_file: Some(text.clone()) };
        let Ok(nodes) = nodelist::nodes(&place) else { continue };
        assert!(!nodes.is_empty() && nodes.iter().filter(|node| node.is_here).count() <= 1);
        assert!(
            nodes.is_sorted_by_key(|node| node.first_slot) && nodes.iter().all(|node| !node.name.is_empty())
        );
    }
    let _ = hostlist::expand(&text);
    for (node, local) in [(0, 0), (1, 3)] {
        let _ = decode_share(&text, node, local);
    }
});
