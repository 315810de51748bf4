//! Processes by pid and start time, so that a pid that is used again is not taken for the old process.

use std::fs;

/// A process in its one life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Life {
    pub pid: i32,
    /// Clock ticks since boot, field 22 of `/proc/PID/stat`.
    pub start: u64,
}

impl Life {
    /// The process that has this pid now.
    pub fn of(pid: i32) -> Option<Life> {
        let (_, start) = stat(pid)?;
        Some(Life { pid, start })
    }

    /// Whether it still runs (a zombie does not).
    pub fn runs(self) -> bool {
        stat(self.pid).is_some_and(|(state, start)| start == self.start && !matches!(state, 'Z' | 'X'))
    }
}

fn stat(pid: i32) -> Option<(char, u64)> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// State and start time. The name may hold spaces and parentheses: what counts begins after the last `)`.
fn parse(text: &str) -> Option<(char, u64)> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3, the start time field 22.
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Direct children of this process.
pub(crate) fn children() -> Vec<i32> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|t| fs::read_to_string(t.path().join("children")).ok());
    lists
        .flat_map(|l| l.split_ascii_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_are_survived() {
        let line = "77 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        assert_eq!(parse(line), Some(('S', 4242)));
        assert_eq!(parse("77 (x) S 1"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_life_ends() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let life = Life::of(child.id() as i32).unwrap();
        assert!(life.runs());
        assert!(children().contains(&life.pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!life.runs());
        assert!(!Life { start: 0, ..Life::of(std::process::id() as i32).unwrap() }.runs());
    }
}
