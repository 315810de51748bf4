//! Where there is no MPI on the batch node: one command for each node, by the scheduler's own remote execution or by ssh. They pass hardly any
//! environment, and start no ranks. On the pilot's own node the program is started as it is: a block of one node needs none of them.

use crate::{Launch, LaunchPlan, Launcher, LauncherError, RankPlan, Stop};

/// What reaches one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Each {
    /// PBS: one task at a line of the node file. Its exit code says nothing of the task's; SIGTERM is passed on (seen on OpenPBS 23).
    Pbsdsh,
    /// OpenPBS: by host name, with the task's exit code; a signal ends the command and leaves the task (seen on OpenPBS 23).
    Tmrsh,
    /// LSF, by host name, after IBM's documentation.
    Blaunch,
    /// A login on each node, which the centre must allow.
    Ssh,
}

impl Each {
    /// The words before the program that bring it to the node.
    fn reach(self, name: &str, first_slot: usize) -> Vec<String> {
        match self {
            Each::Pbsdsh => vec!["pbsdsh".into(), "-n".into(), first_slot.to_string(), "--".into()],
            Each::Tmrsh => vec!["pbs_tmrsh".into(), name.into()],
            Each::Blaunch => vec!["blaunch".into(), name.into()],
            // No question may hang; a node that is gone is noticed within a minute and a half.
            Each::Ssh => [
                "ssh",
                "-x",
                "-T",
                "-o",
                "BatchMode=yes",
                "-o",
                "ConnectTimeout=30",
                "-o",
                "ServerAliveInterval=30",
                name,
            ]
            .map(String::from)
            .to_vec(),
        }
    }
}

/// A word as a POSIX shell reads it back: ssh joins its words for one.
fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./=:,@%+".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

impl Launcher for Each {
    fn name(&self) -> &'static str {
        match self {
            Each::Pbsdsh => "pbsdsh",
            Each::Tmrsh => "pbs_tmrsh",
            Each::Blaunch => "blaunch",
            Each::Ssh => "ssh",
        }
    }

    fn survives_node_loss(&self) -> bool {
        true
    }

    fn coexists(&self) -> bool {
        true
    }

    fn passes_environment(&self) -> bool {
        false
    }

    fn tethers(&self) -> bool {
        *self == Each::Ssh
    }

    fn launch(&self, plan: &LaunchPlan) -> Result<Vec<Launch>, LauncherError> {
        let numbers = plan.numbers(self.name())?;
        let one = |(node, number): (&crate::BlockNode, u16)| {
            let set = plan.env.iter().map(|(name, value)| format!("{name}={value}"));
            let set = set.chain([format!("{}={}", crate::NODE_NAME_VARIABLE, node.name)]);
            let words = std::iter::once("/usr/bin/env".to_string())
                .chain(set)
                .chain(plan.argv_for(&number.to_string()));
            let mut argv = self.reach(&node.name, node.first_slot);
            match self {
                _ if node.is_here => argv = words.collect(),
                Each::Ssh => argv.push(words.map(|word| quoted(&word)).collect::<Vec<_>>().join(" ")),
                _ => argv.extend(words),
            }
            Launch { argv, nodes: vec![number], ..Launch::default() }
        };
        Ok(plan.nodes.iter().zip(numbers).map(one).collect())
    }

    fn ranks(&self, _: &RankPlan) -> Result<Launch, LauncherError> {
        Err(LauncherError::NoRanks(self.name()))
    }

    fn stop(&self) -> Stop {
        match self {
            Each::Pbsdsh | Each::Blaunch => {
                Stop { drain: Some(Stop::TERM), warn: Some(Stop::TERM), kill: Stop::KILL }
            }
            Each::Tmrsh | Each::Ssh => Stop { drain: None, warn: None, kill: Stop::TERM },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_shell_reads_back_what_was_quoted(word in "\\PC{0,30}|[a-z '\"$\\\\*;]{0,20}") {
            // What a POSIX shell does with single quotes and backslashes, nothing else being left outside of quotes.
            let text = quoted(&word);
            let (mut read, mut inside, mut rest) = (String::new(), false, text.chars());
            while let Some(c) = rest.next() {
                match c {
                    '\'' => inside = !inside,
                    '\\' if !inside => read.extend(rest.next()),
                    _ => read.push(c),
                }
            }
            prop_assert!(!inside);
            prop_assert_eq!(read, word);
        }
    }
}
