//! What PBS is asked for, as directives of the batch script.

use super::Make;
use crate::clock::hours_words;
use crate::script::{BLOCK_LOG, one_word, own_options};
use crate::{Asks, BlockRequest, ProviderError, cannot_say};

/// Options by which a block would not be found again (another name), not be one job (arrays), or not be waited for at all: those with `-z`
/// print no id, those with `-I` take a terminal.
const OURS: [&str; 5] = ["-N", "-J", "-t", "-z", "-I"];

/// What every block has, then what its profile says, then the user's own, of which the last wins.
pub(super) fn directives(make: Make, request: &BlockRequest) -> Result<Vec<String>, ProviderError> {
    let Asks { queue, account, qos, reservation, options, .. } = &request.asks;
    let no = [
        ("qos", qos.is_some()),
        ("exclude", !request.exclude.is_empty()),
        // Those of Torque belong to its scheduler, of which there are several.
        ("reservation", make == Make::Torque && reservation.is_some()),
    ];
    cannot_say("pbs", &no)?;
    let dir = one_word("dir", &request.dir)?;
    let mut all = vec![
        format!("-N {}", name(&request.name)?),
        format!("-o {dir}/{BLOCK_LOG}"),
        "-j oe".into(),
        // A pilot that is run again by the server would be another block under the same id.
        "-r n".into(),
        // By default the user gets a mail for every block that is ended.
        "-m n".into(),
    ];
    if make == Make::Open {
        // Written where it belongs while it runs; else it is copied at the end, which holds the job in state E if it fails.
        all.push("-k oed".into());
    }
    // A reservation is a queue of its own, named by its id without the server: `R123` of `R123.pbshead` (PBS User's Guide).
    let of_reservation = reservation.as_ref().map(|r| ("reservation", r.split('.').next().unwrap_or(r)));
    if let Some((key, queue)) = of_reservation.or(queue.as_deref().map(|q| ("queue", q))) {
        all.push(format!("-q {}", one_word(key, queue)?));
    }
    if let Some(account) = account {
        all.push(format!("-A {}", one_word("account", account)?));
    }
    all.extend(match make {
        Make::Open => chunks(request)?,
        Make::Torque => torque_nodes(request)?,
    });
    all.push(format!("-l walltime={}", hours_words(request.walltime_ms)));
    // `-W block=true`, alone or in a list: qsub would come back when the job has ended.
    let waits = |line: &&String| {
        line.split([' ', '\t', ',']).any(|w| w.trim_start_matches("-W").starts_with("block="))
    };
    if let Some(line) = options.iter().find(waits) {
        return Err(ProviderError::BadValue { key: "options", value: line.clone() });
    }
    all.extend(own_options(options, &OURS, true)?.iter().cloned());
    Ok(all.into_iter().map(|d| format!("#PBS {d}")).collect())
}

/// A name that starts with a letter: others make a number, `inf` or worse of it.
fn name(name: &str) -> Result<&str, ProviderError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    if name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(fine) {
        Ok(name)
    } else {
        Err(ProviderError::BadValue { key: "name", value: name.into() })
    }
}

/// One chunk a node. Without `place=scatter` two may land on one host; with `mpiprocs=1` the node file has each host once.
fn chunks(request: &BlockRequest) -> Result<Vec<String>, ProviderError> {
    let asks = &request.asks;
    let mut select = format!("{}", request.nodes);
    if let Some(constraint) = &asks.constraint {
        select.push_str(&format!(":{}", one_word("constraint", constraint)?));
    }
    if let Some(cores) = asks.cores_per_node {
        select.push_str(&format!(":ncpus={cores}"));
    }
    select.push_str(":mpiprocs=1");
    if let Some(gpus) = asks.gpus_per_node {
        select.push_str(&format!(":ngpus={gpus}"));
    }
    if let Some(mib) = asks.memory_per_node_mib {
        select.push_str(&format!(":mem={mib}mb"));
    }
    let place = if asks.exclusive { "scatter:excl" } else { "scatter" };
    Ok(vec![format!("-l select={select}"), format!("-l place={place}")])
}

/// `nodes=2:ppn=8:gpus=4`; memory is a sum over the job.
fn torque_nodes(request: &BlockRequest) -> Result<Vec<String>, ProviderError> {
    let asks = &request.asks;
    let mut nodes = format!("-l nodes={}:ppn={}", request.nodes, asks.cores_per_node.unwrap_or(1));
    if let Some(gpus) = asks.gpus_per_node {
        nodes.push_str(&format!(":gpus={gpus}"));
    }
    if let Some(constraint) = &asks.constraint {
        nodes.push_str(&format!(":{}", one_word("constraint", constraint)?));
    }
    let mut all = vec![nodes];
    if let Some(mib) = asks.memory_per_node_mib {
        all.push(format!("-l mem={}mb", mib.saturating_mul(u64::from(request.nodes))));
    }
    if asks.exclusive {
        all.push("-n".into());
    }
    Ok(all)
}
