//! What this login node does with processes that stay: the rules that would end, slow or starve a daemon. Read from files of the
//! system and limits of this process; asked by `endpoint start`, by whatever starts the daemon, and by `pf site check`.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use pf_site_profiles::{Daemons, Profile};
use std::path::{Path, PathBuf};

/// A memory limit below this is too little for broker and relay with a large job.
const MEMORY_BYTES_WANTED: u64 = 1 << 30;

/// Open files: one for each manager, and some.
const FILES_WANTED: u64 = 4_096;

/// Processes: a few of the daemon's own, and the scheduler's commands.
const PROCESSES_WANTED: u64 = 64;

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Whether it ends the daemon (else it hinders it).
    pub ends: bool,
    /// What it says, and where.
    pub words: String,
    /// What to do.
    pub hint: String,
}

/// Where rules are read from; tests have files of their own.
#[derive(Debug, Clone)]
pub struct System {
    /// `/` but in tests.
    pub root: PathBuf,
    /// The user's name.
    pub user: String,
    /// Soft limits: CPU seconds, open files, processes, address space (bytes). None: no limit.
    pub limits: [Option<u64>; 4],
}

impl System {
    /// This host and this process.
    #[must_use]
    pub fn here(user: &str) -> System {
        let soft = |what| getrlimit(what).ok().map(|(soft, _)| soft).filter(|soft| *soft != RLIM_INFINITY);
        let limits =
            [Resource::RLIMIT_CPU, Resource::RLIMIT_NOFILE, Resource::RLIMIT_NPROC, Resource::RLIMIT_AS]
                .map(soft);
        System { root: "/".into(), user: user.into(), limits }
    }

    /// All rules that would end or hinder a daemon here.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        let mut rules: Vec<Rule> = self.logout().into_iter().collect();
        let [cpu, files, processes, memory] = self.limits;
        if let Some(seconds) = cpu {
            rules.push(Rule {
                ends: true,
                words: format!("ulimit -t: a process is killed after {seconds} s of CPU time"),
                hint: "let the relay run in a service or cron queue, or inside a block: docs/endpoints.md"
                    .into(),
            });
        }
        let mut few = |value: Option<u64>, wanted: u64, words: &str, hint: &str| {
            if let Some(n) = value.filter(|n| *n < wanted) {
                let (words, hint) = (words.replace("{}", &n.to_string()), hint.to_owned());
                rules.push(Rule { ends: false, words, hint });
            }
        };
        few(
            files,
            FILES_WANTED,
            "ulimit -n: {} open files, one is needed for each node",
            "raise it: ulimit -n 8192",
        );
        few(
            processes,
            PROCESSES_WANTED,
            "ulimit -u: {} processes for all your logins together",
            "end others, or ask the centre",
        );
        few(
            memory,
            MEMORY_BYTES_WANTED,
            "ulimit -v: {} bytes of address space",
            "raise it: ulimit -v unlimited",
        );
        rules.extend(self.cgroup());
        rules
    }

    /// systemd's KillUserProcesses without lingering.
    fn logout(&self) -> Option<Rule> {
        if !self.root.join("run/systemd/system").exists() {
            return None;
        }
        let mut files = vec![self.root.join("etc/systemd/logind.conf")];
        let extra = std::fs::read_dir(self.root.join("etc/systemd/logind.conf.d")).into_iter().flatten();
        let mut extra: Vec<PathBuf> = extra
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.extension().is_some_and(|e| e == "conf"))
            .collect();
        extra.sort();
        files.append(&mut extra);
        let mut kills = None;
        for file in files {
            for line in std::fs::read_to_string(&file).unwrap_or_default().lines() {
                if let Some(value) = line.trim().strip_prefix("KillUserProcesses=") {
                    let yes = ["yes", "true", "1", "on"].contains(&value.trim().to_lowercase().as_str());
                    kills = yes.then(|| file.clone());
                }
            }
        }
        let (file, user) = (kills?, &self.user);
        let lingers = self.root.join("var/lib/systemd/linger").join(user).exists();
        (!lingers).then(|| Rule {
            ends: true,
            words: format!(
                "it will end with your login: {} says KillUserProcesses=yes, and you do not linger",
                file.display()
            ),
            hint: format!("`loginctl enable-linger {user}` lets it live"),
        })
    }

    /// Limits of the control groups that this session is in: the daemon stays in them.
    fn cgroup(&self) -> Vec<Rule> {
        let own = std::fs::read_to_string(self.root.join("proc/self/cgroup")).unwrap_or_default();
        // Version 2 alone has one line, `0::/path`.
        let Some(path) = own.lines().find_map(|l| l.strip_prefix("0::/")) else { return Vec::new() };
        let top = self.root.join("sys/fs/cgroup");
        let mut folder = top.join(path.trim());
        let mut rules = Vec::new();
        for _ in 0..32 {
            let limit = |file: &str| -> Option<u64> { read_number(&folder.join(file)) };
            if let Some(bytes) = limit("memory.max").filter(|b| *b < MEMORY_BYTES_WANTED) {
                rules.push(Rule {
                    ends: true,
                    words: format!("all your processes together get {} MiB of memory ({}/memory.max), then one is killed", bytes >> 20, folder.display()),
                    hint: "keep jobs small, or let the relay run inside a block: docs/endpoints.md".into(),
                });
            }
            if let Some(n) = limit("pids.max").filter(|n| *n < PROCESSES_WANTED) {
                rules.push(Rule {
                    ends: false,
                    words: format!("all your processes together may be {n} ({}/pids.max)", folder.display()),
                    hint: "end others, or ask the centre".into(),
                });
            }
            if folder == top || !folder.pop() {
                break;
            }
        }
        rules
    }
}

fn read_number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// What the centre says of daemons on its login nodes, if it does not welcome them.
#[must_use]
pub fn policy(name: &str, profile: &Profile) -> Option<Rule> {
    let login = &profile.login;
    let words = match login.daemons {
        Daemons::Killed => "login nodes end processes that stay",
        Daemons::Limited => "login nodes limit processes that stay",
        Daemons::Allowed | Daemons::Unknown => return None,
    };
    Some(Rule {
        ends: login.daemons == Daemons::Killed,
        words: format!("{words} (profile {name})"),
        hint: if login.about.is_empty() {
            "let the relay run elsewhere: docs/endpoints.md".into()
        } else {
            login.about.clone()
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(root: &Path) -> System {
        System { root: root.into(), user: "ann".into(), limits: [None; 4] }
    }

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
        std::fs::write(path, text).expect("write");
    }

    #[test]
    fn a_system_that_kills_at_logout_is_named() {
        let root = tempfile::tempdir().expect("temporary folder");
        let rules = || system(root.path()).rules();
        assert_eq!(rules(), []);
        std::fs::create_dir_all(root.path().join("run/systemd/system")).expect("mkdir");
        write(root.path(), "etc/systemd/logind.conf", "#KillUserProcesses=yes\n");
        assert_eq!(rules(), []);
        write(root.path(), "etc/systemd/logind.conf.d/site.conf", "[Login]\nKillUserProcesses=yes\n");
        let found = rules();
        assert!(
            found[0].ends && found[0].words.contains("site.conf says KillUserProcesses=yes"),
            "{found:?}"
        );
        assert!(found[0].hint.contains("enable-linger ann"), "{found:?}");
        write(root.path(), "var/lib/systemd/linger/ann", "");
        assert_eq!(rules(), []);
    }

    #[test]
    fn limits_of_process_and_session_are_named() {
        let root = tempfile::tempdir().expect("temporary folder");
        write(root.path(), "proc/self/cgroup", "0::/user.slice/user-1000.slice/session-3.scope\n");
        write(root.path(), "sys/fs/cgroup/user.slice/user-1000.slice/memory.max", "268435456\n");
        write(root.path(), "sys/fs/cgroup/user.slice/memory.max", "max\n");
        write(root.path(), "sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope/pids.max", "20\n");
        let limits = [Some(1800), Some(1024), Some(10_000), None];
        let rules = System { limits, ..system(root.path()) }.rules();
        let words: Vec<String> = rules
            .iter()
            .map(|r| format!("{} {}", r.ends, r.words.replace(&root.path().display().to_string(), "")))
            .collect();
        assert_eq!(
            words,
            [
                "true ulimit -t: a process is killed after 1800 s of CPU time",
                "false ulimit -n: 1024 open files, one is needed for each node",
                "false all your processes together may be 20 (/sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope/pids.max)",
                "true all your processes together get 256 MiB of memory (/sys/fs/cgroup/user.slice/user-1000.slice/memory.max), then one is killed",
            ]
        );
    }
}
