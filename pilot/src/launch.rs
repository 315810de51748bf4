//! The pilot's managers: started with the block's launcher, signalled, and their ends taken. Called by the pilot's shell.

use crate::limits::{MANAGER_BEFORE_PILOT_MS, STOP_GRACE_MS};
use crate::manager::{TETHER_WARNED, WALLTIME_VARIABLE};
use crate::pilot::log;
use crate::words::Words;
use crate::{children, environment, process};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use pf_launcher::{BlockNode, Launch, LaunchPlan, Launcher};
use pf_manager_core::PilotInput;
use pf_protocol::Micros;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};

/// See the module.
pub(crate) struct Managers {
    launcher: Box<dyn Launcher>,
    /// How a manager is started.
    plan: LaunchPlan,
    /// Where the pilot's environment is left, if the launcher does not pass it.
    environment: Option<PathBuf>,
    walltime_end: Micros,
    running: BTreeMap<i32, Running>,
    /// What the launcher says, if it is one process that tells how those below it end.
    words: Option<Words>,
}

/// A process that was launched.
struct Running {
    /// Numbers of the nodes whose managers live below it.
    nodes: Vec<u16>,
    /// Their standard input: by it they are warned, and its end tells them to end.
    tether: Option<ChildStdin>,
}

impl Managers {
    /// None runs yet. The error: this program's own file cannot be found.
    pub fn new(
        launcher: Box<dyn Launcher>,
        nodes: Vec<BlockNode>,
        ticket: &Path,
        walltime_end: Micros,
        incarnation: u64,
    ) -> io::Result<Self> {
        let exe = std::env::current_exe()?.to_string_lossy().into_owned();
        let mut argv = vec![exe, "manager".into(), "--ticket".into(), ticket.to_string_lossy().into_owned()];
        argv.extend(["--node".into(), "{node}".into()]);
        let name = format!("environment-{incarnation:016x}");
        let environment = (!launcher.passes_environment()).then(|| ticket.with_file_name(name));
        if let Some(path) = &environment {
            argv.extend(["--environment".into(), path.to_string_lossy().into_owned()]);
        }
        argv.extend((!launcher.is_direct()).then(|| "--guard".into()));
        argv.extend(launcher.tethers().then(|| "--tether".into()));
        let plan = LaunchPlan { argv, nodes, env: BTreeMap::new() };
        Ok(Managers { launcher, plan, environment, walltime_end, running: BTreeMap::new(), words: None })
    }

    /// Starts what the launcher wants; what cannot be started has ended.
    pub fn start(&mut self, now: Micros) -> Vec<PilotInput> {
        let left_ms = (self.walltime_end.saturating_sub(now) / 1_000).saturating_sub(MANAGER_BEFORE_PILOT_MS);
        self.plan.env.insert(WALLTIME_VARIABLE.into(), left_ms.to_string());
        if let Some(Err(error)) = self.environment.as_deref().map(environment::leave) {
            // Managers say so too when they do not find it.
            log(&format!("the environment cannot be left for the managers: {error}"));
        }
        let launches = match self.launcher.launch(&self.plan) {
            Ok(launches) => launches,
            Err(error) => {
                let all = (0..=u16::MAX).take(self.plan.nodes.len()).collect();
                return ended(all, &format!("could not be started: {error}"), false, true);
            }
        };
        let mut failed = Vec::new();
        for launch in launches {
            log(&format!("starts {}", launch.argv.join(" ")));
            if let Err(error) = self.spawn(&launch) {
                let how = format!("could not be started: {}: {error}", launch.argv[0]);
                failed.extend(ended(launch.nodes, &how, false, true));
            }
        }
        failed
    }

    fn spawn(&mut self, launch: &Launch) -> io::Result<()> {
        let (program, args) = launch.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(find(program));
        command.args(args).envs(&launch.env).process_group(0);
        command.stdin(if self.launcher.tethers() { Stdio::piped() } else { Stdio::null() });
        for name in &launch.env_remove {
            command.env_remove(name);
        }
        if self.launcher.ends_in_words().is_some() {
            command.stderr(Stdio::piped());
        }
        let mut child = process::spawn_open(&mut command)?;
        let running = Running { nodes: launch.nodes.clone(), tether: child.stdin.take() };
        self.running.insert(child.id() as i32, running);
        if let Some(pipe) = child.stderr.take() {
            self.words = Some(Words::new(pipe)?);
        }
        Ok(())
    }

    /// To be watched: [`Managers::hear`] when it is readable.
    pub fn words_fd(&self) -> Option<RawFd> {
        self.words.as_ref().map(Words::fd)
    }

    /// Hears what the launcher says. None: it has nothing more to say; the descriptor may be closed.
    pub fn hear(&mut self) -> Option<Vec<PilotInput>> {
        let (words, read) = (self.words.as_mut()?, self.launcher.ends_in_words()?);
        let (lines, over) = words.take();
        let told = |line: &String| ended(read(line), "exit 1", false, true);
        if over { None } else { Some(lines.iter().flat_map(told).collect()) }
    }

    /// Closes what [`Managers::hear`] has come to the end of.
    pub fn close_words(&mut self) {
        self.words = None;
    }

    /// Asks all to end in order.
    pub fn drain(&mut self, grace_ms: u64) {
        let (stop, warned) = (self.launcher.stop(), grace_ms > STOP_GRACE_MS);
        match if warned { stop.warn } else { stop.drain } {
            Some(signal) => self.signal(signal),
            None if !self.launcher.tethers() => {
                log(&format!("launcher {} passes no signals to managers", self.launcher.name()));
            }
            None if warned => {
                for tether in self.running.values_mut().filter_map(|running| running.tether.as_mut()) {
                    // One that has ended has nobody to warn; its end is seen in a moment.
                    let _ = tether.write_all(&[TETHER_WARNED]);
                }
            }
            None => self.running.values_mut().for_each(|running| running.tether = None),
        }
    }

    /// Ends all.
    pub fn kill(&mut self, hard: bool) {
        self.signal(if hard { libc::SIGKILL } else { self.launcher.stop().kill });
    }

    /// To everything that was launched and runs.
    fn signal(&self, signal: i32) {
        for pid in self.running.keys() {
            children::signal_group(*pid, signal);
        }
    }

    /// Takes the ends of what was launched.
    pub fn reap(&mut self) -> Vec<PilotInput> {
        let mut ends = Vec::new();
        let pids: Vec<i32> = self.running.keys().copied().collect();
        for pid in pids {
            let direct = self.launcher.is_direct();
            let (how, ok, proof) = match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
                // Guards and managers end with 0 or 1, and nothing of theirs runs then. Any other code is the launcher's own: a connection that broke,
                // a node that is gone. What runs on the nodes then may run still.
                Ok(WaitStatus::Exited(_, code)) => (format!("exit {code}"), code == 0, direct || code < 2),
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    (format!("signal {}", signal as i32), false, direct)
                }
                Ok(_) => continue,
                Err(error) => (error.to_string(), false, direct),
            };
            let nodes = self.running.remove(&pid).map_or_else(Vec::new, |running| running.nodes);
            // Its end is the proof on which its tasks are run elsewhere: what it left running must have ended before it is told.
            children::end_children_but(|child| self.running.contains_key(&child));
            ends.extend(ended(nodes, &how, ok, proof));
        }
        ends
    }
}

impl Drop for Managers {
    fn drop(&mut self) {
        if let Some(path) = &self.environment {
            // It is of no use to anybody now; whoever clears the block's folder takes what is left.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// PBS's own commands are not in the PATH of its jobs; where they are stands in its configuration.
fn find(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path =
        program.contains('/') || std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    if !in_path && program.starts_with("pbs") {
        let told = std::env::var("PBS_EXEC").ok();
        let conf = || std::fs::read_to_string("/etc/pbs.conf").ok();
        let found = told
            .or_else(|| pbs_exec(&conf()?).map(String::from))
            .map(|exec| Path::new(&exec).join("bin").join(program));
        if let Some(file) = found.filter(|file| file.is_file()) {
            return file;
        }
    }
    program.into()
}

/// The folder of PBS, from the text of its configuration: shell variables, one a line.
fn pbs_exec(conf: &str) -> Option<&str> {
    conf.lines()
        .find_map(|line| line.trim().strip_prefix("PBS_EXEC="))
        .map(|value| value.trim_matches(['"', '\'', ' ']))
}

fn ended(nodes: Vec<u16>, how: &str, ok: bool, proof: bool) -> Vec<PilotInput> {
    nodes.into_iter().map(|node| PilotInput::ManagerEnded { node, how: how.into(), ok, proof }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_pbs_is_read_from_its_configuration() {
        assert_eq!(
            pbs_exec("PBS_SERVER=head\nPBS_EXEC=/opt/pbs\nPBS_HOME=/var/spool/pbs\n"),
            Some("/opt/pbs")
        );
        assert_eq!(pbs_exec("# PBS_EXEC=/no\n PBS_EXEC=\"/opt/p b s\" \n"), Some("/opt/p b s"));
        assert_eq!(pbs_exec("PBS_SERVER=head\n"), None);
        assert_eq!(find("/no/such"), PathBuf::from("/no/such"));
        assert_eq!(find("sh"), PathBuf::from("sh"));
    }
}
