//! What LSF is asked for, as directives of the batch script.

use super::Make;
use crate::clock::minutes;
use crate::script::{BLOCK_LOG, one_line, one_word, own_options};
use crate::{Asks, BlockRequest, ProviderError, cannot_say};

/// Options by which a block would not be found again (another name, many jobs of one file), or bsub would wait for its end.
const OURS: [&str; 10] = ["-J", "-K", "-I", "-Ip", "-Is", "-IS", "-ISp", "-ISs", "-IX", "-pack"];

/// What every block has, then what its profile says, then the user's own.
pub(super) fn directives(make: Make, request: &BlockRequest) -> Result<Vec<String>, ProviderError> {
    let Asks { queue, account, qos, reservation, options, .. } = &request.asks;
    let no = [("qos", qos.is_some()), ("reservation", make == Make::OpenLava && reservation.is_some())];
    cannot_say("lsf", &no)?;
    let dir = one_word("dir", &request.dir)?;
    let minutes = minutes(request.walltime_ms);
    let mut all = vec![
        format!("-J {}", name(&request.name)?),
        // A percent sign would be the start of %J. Errors go there as well; both end up below a report of LSF's own.
        format!("-o {}/{BLOCK_LOG}", without_percent(dir)?),
        format!("-W {}:{:02}", minutes / 60, minutes % 60),
    ];
    if make == Make::Ibm {
        // Also where the queue would run again what was lost.
        all.push("-rn".into());
    }
    if let Some(queue) = queue {
        all.push(format!("-q {}", one_word("queue", queue)?));
    }
    if let Some(account) = account {
        all.push(format!("-P {}", one_word("account", account)?));
    }
    if let Some(reservation) = reservation {
        all.push(format!("-U {}", one_word("reservation", reservation)?));
    }
    match make {
        Make::Csm => all.extend(whole_nodes(request)?),
        Make::Ibm | Make::OpenLava => all.extend(slots(make, request)?),
    }
    // OpenLava takes `-Jx` for `-J x`; IBM has options of several letters.
    all.extend(own_options(options, &OURS, make == Make::OpenLava)?.iter().cloned());
    Ok(all.into_iter().map(|d| format!("#BSUB {d}")).collect())
}

/// Brackets would make an array of it.
fn name(name: &str) -> Result<&str, ProviderError> {
    if name.contains(['[', ']', '%', '*']) {
        return Err(ProviderError::BadValue { key: "name", value: name.into() });
    }
    one_word("name", name)
}

fn without_percent(dir: &str) -> Result<&str, ProviderError> {
    if dir.contains('%') {
        return Err(ProviderError::BadValue { key: "dir", value: dir.into() });
    }
    Ok(dir)
}

/// CORAL's easy mode: whole nodes, and no other word about them.
fn whole_nodes(request: &BlockRequest) -> Result<Vec<String>, ProviderError> {
    let asks = &request.asks;
    let said = [
        ("constraint", asks.constraint.is_some()),
        ("cores_per_node", asks.cores_per_node.is_some()),
        ("gpus_per_node", asks.gpus_per_node.is_some()),
        ("memory_per_node_mib", asks.memory_per_node_mib.is_some()),
        ("exclude", !request.exclude.is_empty()),
    ];
    cannot_say("lsf", &said)?;
    Ok(vec![format!("-nnodes {}", request.nodes)])
}

/// Slots, as many on each node as it shall give cores; one where the profile does not say.
fn slots(make: Make, request: &BlockRequest) -> Result<Vec<String>, ProviderError> {
    let asks = &request.asks;
    let cores = asks.cores_per_node.unwrap_or(1);
    let mut all = vec![format!("-n {}", u64::from(request.nodes) * u64::from(cores))];
    let mut select = Vec::new();
    if let Some(constraint) = &asks.constraint {
        select.push(format!("({})", inside("constraint", constraint)?));
    }
    for node in &request.exclude {
        select.push(format!("hname!={}", host(node)?));
    }
    let mut needs = Vec::new();
    if !select.is_empty() {
        needs.push(format!("select[{}]", select.join(" && ")));
    }
    needs.push(format!("span[ptile={cores}]"));
    if let Some(mib) = asks.memory_per_node_mib {
        // Without a unit IBM takes what its lsf.conf says; OpenLava knows MB only.
        let unit = if make == Make::Ibm { "MB" } else { "" };
        needs.push(format!("rusage[mem={mib}{unit}]"));
    }
    // One option: OpenLava takes the last of several.
    all.push(format!("-R \"{}\"", needs.join(" ")));
    match (asks.gpus_per_node, make) {
        (Some(gpus), Make::Ibm) => all.push(format!("-gpu \"num={gpus}\"")),
        // Its batch daemon has been seen to die of the option.
        (Some(_), _) => return Err(ProviderError::CannotSay { provider: "lsf", key: "gpus_per_node" }),
        (None, _) => {}
    }
    if asks.exclusive {
        all.push("-x".into());
    }
    Ok(all)
}

/// What may stand inside `"select[..]"`.
fn inside<'a>(key: &'static str, text: &'a str) -> Result<&'a str, ProviderError> {
    let text = one_line(key, text)?;
    if text.trim().is_empty() || text.contains(['"', '[', ']', '\\', '`', '$']) {
        return Err(ProviderError::BadValue { key, value: text.into() });
    }
    Ok(text)
}

/// In quotes, where it would be read as an expression.
fn host(node: &str) -> Result<String, ProviderError> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if node.chars().all(word) && !node.is_empty() {
        return Ok(node.into());
    }
    if node.is_empty() || !node.chars().all(|c| word(c) || matches!(c, '-' | '.')) {
        return Err(ProviderError::BadValue { key: "exclude", value: node.into() });
    }
    Ok(format!("'{node}'"))
}
