//! What Cobalt is asked for, as directives of the batch script: only those directly after its first line are read.

use crate::clock::minutes;
use crate::script::{BLOCK_LOG, one_line, one_word, own_options};
use crate::{Asks, BlockRequest, ProviderError, cannot_say};

/// Files of this name with `.output` and `.cobaltlog` come into the block's folder.
pub(super) const PREFIX: &str = "block";

/// Options by which a block would not be found again (another name, its log elsewhere), or would be no script.
const OURS: [&str; 7] = ["--jobname", "-O", "--outputprefix", "--debuglog", "--mode", "-I", "--interactive"];

/// What every block has, then what its profile says, then the user's own.
pub(super) fn directives(request: &BlockRequest) -> Result<Vec<String>, ProviderError> {
    // It gives whole nodes, exclusive or not.
    let Asks { queue, account, qos, reservation, constraint, options, .. } = &request.asks;
    let Asks { cores_per_node, gpus_per_node, memory_per_node_mib, .. } = &request.asks;
    let no = [
        ("qos", qos.is_some()),
        ("cores_per_node", cores_per_node.is_some()),
        ("gpus_per_node", gpus_per_node.is_some()),
        ("memory_per_node_mib", memory_per_node_mib.is_some()),
        ("exclude", !request.exclude.is_empty()),
    ];
    cannot_say("cobalt", &no)?;
    let dir = one_word("dir", &request.dir)?;
    let mut all = vec![
        format!("-n {}", request.nodes),
        // Zero would be the most that the queue allows.
        format!("-t {}", minutes(request.walltime_ms)),
        format!("--jobname {}", one_word("name", &request.name)?),
        format!("--cwd {dir}"),
        format!("-O {dir}/{PREFIX}"),
        // What shells complain of goes where the last words of a block are looked for.
        format!("-e {dir}/{BLOCK_LOG}"),
    ];
    match (reservation, queue) {
        (Some(reservation), _) => {
            let name = one_word("reservation", reservation)?;
            all.push(format!("-q R.{}", name.strip_prefix("R.").unwrap_or(name)));
        }
        (None, Some(queue)) => all.push(format!("-q {}", one_word("queue", queue)?)),
        (None, None) => {}
    }
    if let Some(account) = account {
        all.push(format!("-A {}", one_word("account", account)?));
    }
    // It may be given once only.
    let mut attributes: Vec<&str> = Vec::new();
    if let Some(constraint) = constraint {
        attributes.push(one_word("constraint", constraint)?);
    }
    let mut rest = Vec::new();
    for line in own_options(options, &OURS, true)? {
        let line = one_line("options", line)?.trim();
        match line.strip_prefix("--attrs").map(|a| a.trim_start_matches('=').trim()) {
            Some(own) if own.split_whitespace().count() == 1 => attributes.push(own),
            _ => rest.push(line.to_string()),
        }
    }
    if !attributes.is_empty() {
        all.push(format!("--attrs {}", attributes.join(":")));
    }
    all.extend(rest);
    Ok(all.into_iter().map(|d| format!("#COBALT {d}")).collect())
}
