//! A place of its own for one end-to-end test: all four folders below a temporary one, and `pf` run with nothing of the user's in its environment.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a condition may take before the test fails. Generous: machines are noisy, and nothing waits for it when all is well.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// See the module. Ends its daemon, and all that the daemon started, when dropped.
pub struct Site {
    dir: tempfile::TempDir,
    /// Variables of its commands, beside the few that all have.
    env: BTreeMap<String, String>,
}

/// What a command of `pf` gave.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; 128 + n for a signal.
    pub code: i32,
    /// Data.
    pub stdout: String,
    /// Talk.
    pub stderr: String,
}

impl Ran {
    pub(crate) fn new(output: &Output) -> Ran {
        use std::os::unix::process::ExitStatusExt;
        let status = output.status;
        Ran {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Ran {
        let output = command.output();
        Ran::new(&output.unwrap_or_else(|e| panic!("{:?} cannot be started: {e}", command.get_program())))
    }

    /// Itself, if the exit code is `code`.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "exit code\nstdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("not JSON ({e}): {}\n{}", self.stdout, self.stderr))
    }

    /// Standard output as JSON lines, which may be none.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        let line =
            |l| serde_json::from_str(l).unwrap_or_else(|e| panic!("not JSON ({e}): {l}\n{}", self.stderr));
        self.stdout.lines().map(line).collect()
    }

    /// Fails unless standard error says each of these words: an error must name the object, the reason and what to do.
    #[track_caller]
    pub fn says(&self, words: &[&str]) -> &Ran {
        for word in words {
            assert!(self.stderr.contains(word), "stderr does not say {word:?}:\n{}", self.stderr);
        }
        self
    }
}

/// The binary under test: `PF_BIN`, else the one built beside this test.
#[must_use]
pub fn pf_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("PF_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test knows its own path");
    let pf = test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps").join("pf");
    assert!(pf.exists(), "{} is missing: run `cargo build` first, as scripts/test does", pf.display());
    pf
}

/// The Python for workers: `PF_TEST_PYTHON`, else `python3`.
#[must_use]
pub fn python() -> String {
    std::env::var("PF_TEST_PYTHON").unwrap_or_else(|_| "python3".into())
}

/// Waits until `done` gives a value.
///
/// # Panics
/// After [`PATIENCE`], with `what`.
#[track_caller]
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl Site {
    /// A fresh place. Nothing runs yet: the first command that needs a broker starts it.
    #[must_use]
    pub fn new() -> Site {
        // Short, since Unix socket paths are limited to 107 bytes.
        let dir = tempfile::Builder::new().prefix("pf-").tempdir().expect("a temporary folder");
        Site { dir, env: BTreeMap::new() }
    }

    /// Sets a variable for all commands from now on.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.env.insert(name.into(), value.into());
    }

    /// The root of its folders.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A command of `pf` in this place, not yet run.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.program(pf_binary());
        command.args(args);
        command
    }

    /// Another program in this place, with the environment of its `pf`.
    #[must_use]
    pub fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.path()).env_clear();
        for kept in ["PATH", "LD_LIBRARY_PATH", "TMPDIR"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        command.env("HOME", self.path()).env("PILOTFISH_DIR", self.path().join("root"));
        command.envs(&self.env).stdin(Stdio::null());
        command
    }

    /// Runs `pf` to its end.
    #[must_use]
    pub fn pf(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(args))
    }

    /// Runs `pf` with `input` on standard input.
    #[must_use]
    pub fn pf_with_input(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("pf can be started");
        let mut stdin = child.stdin.take().expect("stdin is a pipe");
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().expect("pf ends");
        drop(writer.join());
        Ran::new(&output)
    }

    /// Runs `pf` in the background.
    #[must_use]
    pub fn spawn(&self, args: &[&str]) -> Background {
        Background::of(&mut self.command(args))
    }

    /// Starts its broker, which listens for relays at `address`; `HOST:PORT` to dial.
    pub fn listen_for_relays(&mut self, address: &str) -> String {
        // Somebody else may take a free port before the broker has it.
        wait_for("a broker at a free port", || {
            let dial = format!("{address}:{}", free_port(address));
            self.set("PILOTFISH_BROKER_LISTEN_RELAYS", dial.clone());
            (self.pf(&["broker", "start"]).code == 0).then_some(dial)
        })
    }

    /// The process id of this place's broker.
    #[must_use]
    pub fn broker_pid(&self) -> Option<i32> {
        let status = self.pf(&["broker", "status", "--json"]);
        let pid = serde_json::from_str::<serde_json::Value>(&status.stdout).ok()?["pid"].as_i64()?;
        i32::try_from(pid).ok()
    }

    /// Names of the endpoints that its broker knows.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        let list = self.pf(&["endpoint", "list", "--quiet"]);
        list.stdout.lines().map(str::to_owned).collect()
    }

    /// Pids of all processes that were started from this place, by their environment.
    #[must_use]
    pub fn pids(&self) -> Vec<(i32, String)> {
        let mark = format!("PILOTFISH_DIR={}", self.path().join("root").display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
            if read("environ").split(|b| *b == 0).any(|v| v == mark.as_bytes()) {
                let words: Vec<String> = read("cmdline")
                    .split(|b| *b == 0)
                    .map(|w| String::from_utf8_lossy(w).into_owned())
                    .collect();
                found.push((pid, words.join(" ")));
            }
        }
        found
    }

    /// Pids of this place's processes whose command line contains `words`.
    #[must_use]
    pub fn pids_of(&self, words: &str) -> Vec<i32> {
        self.pids().into_iter().filter(|(_, line)| line.contains(words)).map(|(pid, _)| pid).collect()
    }
}

/// A port of `address` that was free just now.
#[must_use]
fn free_port(address: &str) -> u16 {
    let listener = std::net::TcpListener::bind((address, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// Sends SIGKILL.
pub fn kill_hard(pid: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.path().join("root/durable/daemon.log");
            eprintln!("the daemon's log:\n{}", std::fs::read_to_string(log).unwrap_or_default());
            eprintln!("left running: {:#?}", self.pids());
            if self.path().join("root").exists() {
                for endpoint in self.endpoints() {
                    let explained = self.pf(&["endpoint", "explain", &endpoint]);
                    eprintln!("{}{}", explained.stdout, explained.stderr);
                }
            }
        }
        if self.path().join("root").exists() {
            for endpoint in self.endpoints() {
                let _ = self.pf(&["endpoint", "stop", "--kill", &endpoint]);
            }
            let _ = self.pf(&["broker", "stop"]);
        }
        // What a test has torn apart by force does not end by itself.
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(10) {
            let left = self.pids();
            if left.is_empty() {
                break;
            }
            if began.elapsed() > Duration::from_secs(3) {
                left.iter().for_each(|(pid, _)| kill_hard(*pid));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A `pf` that runs in the background; killed when dropped.
pub struct Background(Child);

impl Background {
    /// Starts a command.
    pub fn of(command: &mut Command) -> Background {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Background(command.spawn().expect("the program can be started"))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// Waits for its end.
    #[must_use]
    pub fn end(mut self) -> Ran {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let out = self.0.stdout.take();
        let reader = std::thread::spawn(move || out.map(|mut o| o.read_to_end(&mut stdout)).map(|_| stdout));
        if let Some(mut err) = self.0.stderr.take() {
            let _ = err.read_to_end(&mut stderr);
        }
        let status = self.0.wait().expect("pf ends");
        let stdout = reader.join().ok().flatten().unwrap_or_default();
        Ran::new(&Output { status, stdout, stderr })
    }

    /// Reads standard output until it contains `word`.
    #[track_caller]
    pub fn wait_for_output(&mut self, word: &str) -> String {
        read_until(self.0.stdout.as_mut().expect("stdout is a pipe"), word)
    }

    /// Reads standard error until it contains `word`.
    #[track_caller]
    pub fn wait_for_talk(&mut self, word: &str) -> String {
        read_until(self.0.stderr.as_mut().expect("stderr is a pipe"), word)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal);
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads until `word` has come.
#[track_caller]
fn read_until(stream: &mut (impl Read + std::os::fd::AsFd), word: &str) -> String {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(stream.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a pipe has flags");
    let (mut seen, mut byte) = (Vec::new(), [0u8; 1]);
    let found = wait_for(word, || {
        // Byte by byte: what comes behind the word is left for the next look.
        while !String::from_utf8_lossy(&seen).contains(word) {
            match stream.read(&mut byte) {
                Ok(1) => seen.push(byte[0]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return None,
                _ => panic!("output ended without {word:?}: {}", String::from_utf8_lossy(&seen)),
            }
        }
        Some(String::from_utf8_lossy(&seen).into_owned())
    });
    fcntl(stream.as_fd(), FcntlArg::F_SETFL(OFlag::empty())).expect("a pipe has flags");
    found
}
