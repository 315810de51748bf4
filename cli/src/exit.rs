//! The exit codes of `pf`, a promise to scripts: `docs/cli.md` prints this table, a test compares them.

use std::process::ExitCode;

/// How `pf` ended. `pf run` of a single task ends with that task's own code instead (128 + N for signal N).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All is well.
    Ok,
    /// `run`, `wait`: some tasks did not end with a value.
    TasksFailed,
    /// The command line is not one that `pf` takes. Also a configuration that cannot be read.
    Usage,
    /// The broker refused it, and would refuse it again.
    Refused,
    /// The job, task, block, endpoint or function does not exist.
    NotFound,
    /// No broker answers, or it stopped answering.
    Unreachable,
    /// A fault of `pf` or of the machine under it: a full disk, a damaged log, a bug.
    Internal,
    /// `wait --timeout`: the time was over before the job.
    TimedOut,
    /// `run` ended before all of its tasks were done: the allocation's time was over, or it was told to by SIGTERM.
    Unfinished,
    /// Interrupted by Ctrl-C.
    Interrupted,
    /// The task's own code, from `pf run` of a single task.
    Task(u8),
}

impl Exit {
    /// All but [`Exit::Task`], in the order of their codes.
    pub const ALL: [Exit; 10] = [
        Exit::Ok,
        Exit::TasksFailed,
        Exit::Usage,
        Exit::Refused,
        Exit::NotFound,
        Exit::Unreachable,
        Exit::Internal,
        Exit::TimedOut,
        Exit::Unfinished,
        Exit::Interrupted,
    ];

    /// The number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::TasksFailed => 1,
            Exit::Usage => 2,
            Exit::Refused => 3,
            Exit::NotFound => 4,
            Exit::Unreachable => 5,
            Exit::Internal => 6,
            Exit::TimedOut => 7,
            Exit::Unfinished => 8,
            Exit::Interrupted => 130,
            Exit::Task(code) => code,
        }
    }

    /// What it means, for the documentation.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Exit::Ok => "all is well",
            Exit::TasksFailed => "some tasks did not succeed (`run`, `wait`)",
            Exit::Usage => "wrong command line or configuration",
            Exit::Refused => "the broker refused it: invalid, impossible, forbidden, over a limit",
            Exit::NotFound => "no such job, task, block, endpoint or function",
            Exit::Unreachable => "no broker answers",
            Exit::Internal => "a fault of pf or of the machine under it",
            Exit::TimedOut => "`wait --timeout` was over before the job",
            Exit::Unfinished => "`run` had to end before all tasks were done; `pf run --resume` goes on",
            Exit::Interrupted => "interrupted by Ctrl-C",
            Exit::Task(_) => "the task's own exit code",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_book_is_this_one() {
        let book = include_str!("../../docs/cli.md");
        for exit in Exit::ALL {
            let row = format!("| {} | {} |", exit.code(), exit.meaning());
            assert!(book.contains(&row), "docs/cli.md lacks the row {row}");
        }
    }

    #[test]
    fn codes_are_distinct_and_rising() {
        assert!(Exit::ALL.windows(2).all(|w| w[0].code() < w[1].code()));
    }
}
