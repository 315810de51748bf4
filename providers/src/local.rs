//! Blocks that are processes of this machine. The scheduler is `pf local submit|status|cancel`, with the manners of sbatch, squeue and
//! scancel: argv in, lines out (`pf_relay::local_scheduler` is its other side).

use crate::limits::STATUS_LINES_MAX;
use crate::words::words;
use crate::{Asks, BlockRequest, KnownBlock, Observed, Output, Plan, Provider, ProviderError};
use pf_protocol::report::{BlockEnd, BlockState};

/// See the module.
#[derive(Debug, Clone)]
pub struct Local {
    /// The `pf` whose hidden verb `local` is the scheduler.
    pub program: String,
    /// Process with which blocks end.
    pub ends_with: Option<u32>,
}

impl Local {
    fn argv(&self, verb: &str, rest: &[&str]) -> Vec<String> {
        let start = [self.program.as_str(), "local", verb];
        start.iter().chain(rest).map(|s| (*s).to_string()).collect()
    }
}

/// An id is `PID-STARTTIME`, so that a process id that is used again is not taken for the block.
fn is_id(text: &str) -> bool {
    text.split_once('-').is_some_and(|(pid, start)| {
        let digits = |s: &str| !s.is_empty() && s.len() <= 20 && s.bytes().all(|b| b.is_ascii_digit());
        digits(pid) && digits(start)
    })
}

/// The state that a word and its detail mean.
fn state(word: &str, detail: &str) -> BlockState {
    let number = detail.parse::<i32>();
    match (word, number) {
        ("PENDING", _) => BlockState::Queued(detail.into()),
        ("RUNNING", _) => BlockState::Running,
        ("ENDING", _) => BlockState::Ending,
        ("COMPLETED", _) => BlockState::Ended(BlockEnd::Completed),
        ("FAILED", Ok(code)) => BlockState::Ended(BlockEnd::Failed(code)),
        ("SIGNAL", Ok(signal)) => BlockState::Ended(BlockEnd::Signal(signal)),
        ("TIMEOUT", _) => BlockState::Ended(BlockEnd::Walltime),
        ("CANCELLED", _) => BlockState::Ended(BlockEnd::Cancelled),
        ("VANISHED", _) => BlockState::Ended(BlockEnd::Unknown(detail.into())),
        _ => BlockState::Unknown(format!("{word} {detail}")),
    }
}

/// The first thing that is asked for and that there is not on one machine.
fn first_set(asks: &Asks) -> Option<&'static str> {
    let Asks {
        queue,
        account,
        qos,
        reservation,
        constraint,
        cores_per_node,
        gpus_per_node,
        memory_per_node_mib,
        exclusive,
        options,
        setup,
    } = asks;
    [
        ("queue", queue.is_some()),
        ("account", account.is_some()),
        ("qos", qos.is_some()),
        ("reservation", reservation.is_some()),
        ("constraint", constraint.is_some()),
        ("cores_per_node", cores_per_node.is_some()),
        ("gpus_per_node", gpus_per_node.is_some()),
        ("memory_per_node_mib", memory_per_node_mib.is_some()),
        ("exclusive", *exclusive),
        ("options", !options.is_empty()),
        ("setup", !setup.is_empty()),
    ]
    .into_iter()
    .find_map(|(key, set)| set.then_some(key))
}

impl Provider for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn dialect(&self) -> &'static str {
        ""
    }

    fn submit_shows_within_ms(&self) -> u64 {
        // The supervisor's first act, or it never lived.
        20_000
    }

    fn poll_ms(&self) -> u64 {
        // Its answer costs one short process on this host, and nobody else's patience.
        100
    }

    fn submit_ms(&self) -> u64 {
        0
    }

    fn runs_here(&self) -> bool {
        true
    }

    fn submit(&self, request: &BlockRequest) -> Result<Plan, ProviderError> {
        // There is one node, which is all there: what a scheduler would be asked for has no meaning here.
        if let Some(key) = first_set(&request.asks) {
            return Err(ProviderError::CannotSay { provider: "local", key });
        }
        let seconds = request.walltime_ms.div_ceil(1_000).to_string();
        let rest = ["--name", &request.name, "--dir", &request.dir, "--walltime-s", &seconds];
        let mut argv = self.argv("submit", &rest);
        if let Some(pid) = self.ends_with {
            argv.extend(["--ends-with".into(), pid.to_string()]);
        }
        argv.extend(["--", &request.program, "pilot", "--ticket"].map(String::from));
        argv.push(format!("{}/ticket.json", request.dir));
        Ok(Plan { argv, ..Plan::default() })
    }

    fn submitted(&self, output: &Output) -> Result<String, ProviderError> {
        if output.exit != Some(0) {
            return Err(ProviderError::refused(words(output)));
        }
        let id = output.stdout.lines().rev().map(str::trim).find(|line| is_id(line));
        id.map(String::from).ok_or_else(|| ProviderError::NotUnderstood(words(output)))
    }

    fn status(&self, blocks: &[KnownBlock]) -> Plan {
        let dirs: Vec<&str> = blocks.iter().map(|b| b.dir.as_str()).collect();
        Plan { argv: self.argv("status", &dirs), ..Plan::default() }
    }

    /// Lines `ID|NAME|STATE|LEFT_MS|DETAIL`.
    fn observed(&self, output: &Output) -> Result<Vec<Observed>, ProviderError> {
        if output.exit != Some(0) {
            return Err(ProviderError::NotUnderstood(words(output)));
        }
        let mut found = Vec::new();
        for line in output.stdout.lines().take(STATUS_LINES_MAX) {
            let mut fields = line.splitn(5, '|');
            let (Some(id), Some(name), Some(word)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            if !is_id(id) {
                continue;
            }
            let left = fields.next().and_then(|l| l.parse().ok());
            let state = state(word, fields.next().unwrap_or("").trim());
            found.push(Observed {
                id: id.into(),
                name: name.into(),
                state,
                walltime_left_ms: left,
                restarts: None,
            });
        }
        Ok(found)
    }

    fn lookup(&self, _block: &KnownBlock) -> Vec<Plan> {
        // The status reads each block's own folder: there is nothing more to ask.
        Vec::new()
    }

    fn looked_up(
        &self,
        _block: &KnownBlock,
        _step: usize,
        output: &Output,
    ) -> Result<Option<Observed>, ProviderError> {
        Err(ProviderError::NotUnderstood(words(output)))
    }

    fn cancel(&self, block: &KnownBlock, _round: u32) -> Result<Plan, ProviderError> {
        // The supervisor turns harsh by itself.
        Ok(Plan { argv: self.argv("cancel", &[&block.dir]), ..Plan::default() })
    }

    fn cancelled(&self, output: &Output) -> Result<(), ProviderError> {
        if output.exit == Some(0) { Ok(()) } else { Err(ProviderError::refused(words(output))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn local() -> Local {
        Local { program: "/x/pf".into(), ends_with: None }
    }

    fn said(stdout: &str) -> Output {
        Output { exit: Some(0), stdout: stdout.into(), stderr: String::new() }
    }

    #[test]
    fn submit_is_argv_and_the_id_is_the_last_line_that_looks_like_one() {
        let request = BlockRequest {
            name: "pf-here-b1".into(),
            dir: "/d/b1".into(),
            program: "/d/pf".into(),
            walltime_ms: 1_500,
            ..BlockRequest::default()
        };
        let argv = local().submit(&request).unwrap().argv.join(" ");
        assert_eq!(
            argv,
            "/x/pf local submit --name pf-here-b1 --dir /d/b1 --walltime-s 2 -- /d/pf pilot --ticket /d/b1/ticket.json"
        );
        let with = Local { ends_with: Some(77), ..local() }.submit(&request).unwrap().argv.join(" ");
        assert_eq!(with, argv.replace(" -- ", " --ends-with 77 -- "));
        assert_eq!(local().submitted(&said("Welcome to here 3-D\n123-4567\n")).unwrap(), "123-4567");
        let refused = Output { exit: Some(1), stderr: "no such folder\n".into(), ..Output::default() };
        assert_eq!(local().submitted(&refused), Err(ProviderError::refused("no such folder".into())));
        let asks = Asks { qos: Some("high".into()), ..Asks::default() };
        let cannot = local().submit(&BlockRequest { asks, ..request }).unwrap_err();
        assert_eq!(cannot, ProviderError::CannotSay { provider: "local", key: "qos" });
        assert!(matches!(local().submitted(&said("hm\n")), Err(ProviderError::NotUnderstood(_))));
    }

    #[test]
    fn each_state_has_its_meaning_and_the_rest_is_unknown() {
        let text = "1-1|a|RUNNING|5000|\n2-1|b|FAILED||3\n3-1|c|SIGNAL||9\n4-1|d|TIMEOUT||\n5-1|e|WHAT||else\nbanner\n";
        let found = local().observed(&said(text)).unwrap();
        let states: Vec<_> = found.iter().map(|o| o.state.clone()).collect();
        assert_eq!(
            states,
            [
                BlockState::Running,
                BlockState::Ended(BlockEnd::Failed(3)),
                BlockState::Ended(BlockEnd::Signal(9)),
                BlockState::Ended(BlockEnd::Walltime),
                BlockState::Unknown("WHAT else".into()),
            ]
        );
        assert_eq!(found[0].walltime_left_ms, Some(5_000));
        assert_eq!(found[0].name, "a");
    }

    proptest! {
        #[test]
        fn any_words_are_survived(stdout in "\\PC{0,300}", lines in "([0-9|A-Z-]{0,40}\n){0,5}", exit in 0i32..2) {
            for text in [stdout, lines] {
                let output = Output { exit: Some(exit), stdout: text, stderr: String::new() };
                let _ = local().submitted(&output);
                let _ = local().observed(&output);
                let _ = local().cancelled(&output);
            }
        }
    }
}
