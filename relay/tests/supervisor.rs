//! The batch script's supervisor under the shells that there are: what it runs, passes on, and writes down.

use pf_protocol::report::BlockEnd;
use pf_providers::script::{END, PILOT_LOG, block_script};
use pf_providers::{Asks, BlockRequest, supervisor};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longer than any shell is slow.
const WAIT: Duration = Duration::from_secs(60);

struct Block {
    folder: tempfile::TempDir,
    shell: &'static str,
}

/// Shells of this host; `sh` is always there.
fn shells() -> Vec<&'static str> {
    let there = |shell: &&str| Command::new(shell).args(["-c", ":"]).status().is_ok_and(|s| s.success());
    ["sh", "dash", "bash", "ksh"].into_iter().filter(there).collect()
}

impl Block {
    /// A block whose "pilot" is a shell script.
    fn new(shell: &'static str, pilot: &str, setup: &[&str]) -> Block {
        let folder = tempfile::Builder::new().prefix("pf it's ").tempdir().expect("a folder");
        let block = Block { folder, shell };
        let program = block.path("pf");
        std::fs::write(&program, format!("#!/bin/sh\n{pilot}\n")).expect("write the pilot");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).expect("make it run");
        let request = BlockRequest {
            name: "b".into(),
            dir: block.folder.path().to_string_lossy().into_owned(),
            program: program.to_string_lossy().into_owned(),
            asks: Asks { setup: setup.iter().map(|s| (*s).to_string()).collect(), ..Asks::default() },
            ..BlockRequest::default()
        };
        let script = block_script(&[], &request).expect("a script");
        std::fs::write(block.path("block.sh"), script).expect("write the script");
        block
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        // A shell cannot trap what its parent ignores, as whoever runs the tests behind `nohup` or `&` does.
        let mut command = Command::new("env");
        command
            .args(["--default-signal=INT,HUP", self.shell])
            .arg(self.path("block.sh"))
            .current_dir("/")
            .stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn start(&self) -> Child {
        self.command().spawn().expect("the shell starts")
    }

    fn run(&self) -> ExitStatus {
        self.start().wait().expect("it ends")
    }

    fn end(&self) -> Option<BlockEnd> {
        supervisor::end(&std::fs::read_to_string(self.path(END)).unwrap_or_default())
    }

    /// Waits for a whole line in a file.
    fn line(&self, name: &str) -> String {
        let until = Instant::now() + WAIT;
        loop {
            let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
            if text.ends_with('\n') {
                return text.trim().into();
            }
            assert!(Instant::now() < until, "{}: {name} does not come", self.shell);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn signal(pid: &str, signal: &str) {
    let sent = Command::new("kill").args(["-s", signal, pid]).status().expect("kill runs");
    assert!(sent.success(), "{signal} to {pid}");
}

#[test]
fn the_pilots_exit_code_is_the_scripts_and_is_written_down() {
    for shell in shells() {
        for (code, end) in [(0, BlockEnd::Completed), (7, BlockEnd::Failed(7)), (127, BlockEnd::Failed(127))]
        {
            let block = Block::new(shell, &format!("echo \"$@\"; exit {code}"), &[]);
            std::fs::write(block.path(END), "code 99\n").expect("an end of an earlier run");
            assert_eq!(block.run().code(), Some(code), "{shell}");
            assert_eq!(block.end(), Some(end), "{shell}");
            let ticket = block.path("ticket.json").to_string_lossy().into_owned();
            assert_eq!(block.line(PILOT_LOG), format!("pilot --ticket {ticket}"), "{shell}");
        }
    }
}

#[test]
fn a_pilot_that_is_killed_is_written_down_as_killed() {
    for shell in shells() {
        let block = Block::new(shell, "echo $$ > pid; exec sleep 1000", &[]);
        let mut child = block.start();
        signal(&block.line("pid"), "KILL");
        assert_eq!(child.wait().expect("it ends").code(), Some(137), "{shell}");
        assert_eq!(block.end(), Some(BlockEnd::Signal(9)), "{shell}");
    }
}

#[test]
fn signals_are_passed_on_and_waited_for() {
    // A pilot that is warned goes on; one that is told to end ends as it likes.
    let pilot = "trap 'echo usr1 > warned' USR1; trap 'echo bye > told; exit 5' TERM; echo $$ > pid; while :; do sleep 0.02; done";
    for shell in shells() {
        for last in ["TERM", "INT", "HUP"] {
            let block = Block::new(shell, pilot, &[]);
            let mut child = block.start();
            let script = child.id().to_string();
            block.line("pid");
            signal(&script, "USR1");
            assert_eq!(block.line("warned"), "usr1", "{shell}");
            assert_eq!(block.end(), None, "{shell}: the pilot goes on");
            signal(&script, last);
            assert_eq!(child.wait().expect("it ends").code(), Some(5), "{shell} {last}");
            assert_eq!(block.line("told"), "bye", "{shell} {last}");
            assert_eq!(block.end(), Some(BlockEnd::Failed(5)), "{shell} {last}");
        }
    }
}

#[test]
fn signals_at_any_moment_lose_nothing() {
    // Whatever the pilot was doing when they came, the script ends with the pilot, and what is written is how it ended.
    for shell in shells() {
        for round in 0..20 {
            let block = Block::new(shell, "exit 3", &[]);
            let mut child = block.start();
            let script = child.id().to_string();
            std::thread::sleep(Duration::from_micros(700 * round));
            let _ = Command::new("kill").args(["-s", "TERM", &script]).stderr(Stdio::null()).status();
            let status = child.wait().expect("it ends");
            match (status.code(), status.signal()) {
                // Before the traps were set.
                (None, Some(15)) => assert_eq!(block.end(), None, "{shell}"),
                // Before the pilot ran, or had its own handler.
                (Some(143), _) => assert_eq!(block.end(), Some(BlockEnd::Signal(15)), "{shell}"),
                (code, _) => {
                    assert_eq!(code, Some(3), "{shell}");
                    assert_eq!(block.end(), Some(BlockEnd::Failed(3)), "{shell}");
                }
            }
        }
    }
}

#[test]
fn setup_lines_run_first_and_their_failure_is_written_down() {
    for shell in shells() {
        let block = Block::new(shell, "echo $FLAVOUR; exit 0", &["export FLAVOUR=salt", "set -eu; cd /"]);
        assert_eq!(block.run().code(), Some(0), "{shell}");
        assert_eq!(block.line(PILOT_LOG), "salt", "{shell}");
        let block = Block::new(shell, "echo never", &["exit 4"]);
        assert_eq!(block.run().code(), Some(4), "{shell}");
        assert_eq!(block.end(), Some(BlockEnd::Failed(4)), "{shell}");
        assert!(!Path::new(&block.path(PILOT_LOG)).exists(), "{shell}");
    }
}

#[test]
fn a_job_without_any_environment_runs_and_finds_the_systems_programs() {
    for shell in shells() {
        let block = Block::new(shell, "/usr/bin/env | grep ^PATH=", &[]);
        assert!(block.command().env_clear().status().expect("it ends").success(), "{shell}");
        assert_eq!(block.end(), Some(BlockEnd::Completed), "{shell}");
        assert!(block.line(PILOT_LOG).ends_with("/usr/bin:/bin"), "{shell}");
    }
}

#[test]
fn a_program_that_is_not_there_is_told_in_the_pilots_log() {
    for shell in shells() {
        let block = Block::new(shell, "", &[]);
        std::fs::remove_file(block.path("pf")).expect("no pilot");
        assert_eq!(block.run().code(), Some(127), "{shell}");
        assert_eq!(block.end(), Some(BlockEnd::Failed(127)), "{shell}");
        assert!(
            block.line(PILOT_LOG).contains("not found") || block.line(PILOT_LOG).contains("No such"),
            "{shell}"
        );
    }
}
