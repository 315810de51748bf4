//! Schedulers that are not there, for end-to-end tests: `tests/emulator` plays them, in a folder of the test's own, with commands of their
//! names first in PATH.

use crate::site::{Ran, Site, wait_for};
use crate::{repo_root, stand_ins};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// OpenPBS 23.
    OpenPbs,
    /// OpenLava 4.
    OpenLava,
    /// LSF 10.1, as far as `bjobs -o` goes.
    Ibm,
    /// Cobalt 1.0.
    Cobalt,
}

/// A job, as the emulator keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// `late`, `queued`, `running` or `ended`.
    pub state: String,
    /// Why it was ended, if it was.
    pub end: Option<String>,
    /// Exit code of its script, once it has one; negative: a signal.
    pub code: Option<i64>,
}

/// See the module.
pub struct Emulated {
    kind: Kind,
    dir: PathBuf,
    /// Its commands, and stand-ins for what reaches its nodes.
    bin: PathBuf,
    /// The place whose `pf` uses it.
    pub site: Site,
}

impl Emulated {
    /// A fresh one with these nodes.
    #[must_use]
    pub fn new(kind: Kind, nodes: usize) -> Emulated {
        let mut site = Site::new();
        let dir = site.path().join("scheduler");
        let bin = site.path().join("bin");
        fs::create_dir_all(dir.join("jobs")).expect("a folder for jobs");
        fs::create_dir(&bin).expect("a folder for commands");
        let program = repo_root().join("tests/emulator/emulator.py");
        let program = program.canonicalize().expect("the emulator");
        for command in kind.commands() {
            std::os::unix::fs::symlink(&program, bin.join(command)).expect("a command");
        }
        stand_ins::install(&bin);
        let path = std::env::var("PATH").unwrap_or_default();
        site.set("PATH", format!("{}:{path}", bin.display()));
        site.set("PF_EMULATOR_DIR", dir.display().to_string());
        let emulated = Emulated { kind, dir, bin, site };
        let names: Vec<String> = (1..=nodes).map(|n| format!("n{n}")).collect();
        emulated.write("settings.json", &json!({ "mode": kind.mode(), "nodes": names }).to_string());
        emulated
    }

    /// Which it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Adds an endpoint that uses it, with more settings (`KEY=VALUE`).
    #[track_caller]
    pub fn endpoint(&self, name: &str, settings: &[&str]) {
        let add = ["endpoint", "add", name, "--set"];
        let common = ["walltime=10m", "idle=1s", "poll=300ms", "submit_every=100ms"];
        let _ = self.site.pf(&[&add[..], self.kind.settings(), &common, settings].concat()).expect_code(0);
    }

    /// Changes one of its settings.
    pub fn set(&self, name: &str, value: Value) {
        let mut settings: Value =
            serde_json::from_str(&self.read("settings.json")).expect("settings are JSON");
        settings[name] = value;
        self.write("settings.json", &settings.to_string());
    }

    /// Puts it in a mood (see `tests/emulator/queue_.py`).
    pub fn mood(&self, name: &str, text: &str) {
        self.write(name, text);
    }

    /// Takes a mood away.
    pub fn calm(&self, name: &str) {
        let _ = fs::remove_file(self.dir.join(name));
    }

    /// Whether it is (still) in a mood.
    #[must_use]
    pub fn in_mood(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }

    /// All jobs that there ever were.
    #[must_use]
    pub fn jobs(&self) -> Vec<Job> {
        let job = |value: Value| Job {
            id: value["id"].as_u64().unwrap_or_default(),
            name: value["name"].as_str().unwrap_or_default().into(),
            state: value["state"].as_str().unwrap_or_default().into(),
            end: value["end"].as_str().map(Into::into),
            code: value["code"].as_i64(),
        };
        self.records().into_iter().map(|(_, value)| job(value)).collect()
    }

    /// Jobs that are not over.
    #[must_use]
    pub fn live(&self) -> Vec<Job> {
        self.jobs().into_iter().filter(|j| j.state != "ended").collect()
    }

    /// What happens to a job behind the back of `pf`: `cancelled` (by its user), `preempted` (deleted for another), `walltime` (which comes at once:
    /// limits of tests are shorter than a scheduler's smallest), `lost` (its node).
    pub fn strike(&self, id: u64, how: &str) {
        self.change(id, "kill", how.into());
    }

    /// Stops a job's processes for another job, or lets them go on.
    pub fn suspend(&self, id: u64, suspended: bool) {
        self.change(id, "suspended", suspended.into());
    }

    fn change(&self, id: u64, field: &str, to: Value) {
        let lock = fs::File::create(self.dir.join("lock")).expect("its lock");
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).expect("its lock");
        for (path, mut value) in self.records() {
            if value["id"] == id {
                value[field] = to.clone();
                replace(&path, &value.to_string());
            }
        }
    }

    /// Submits a batch job of the user's own, a script of one line, from the site's folder. Its output is in `out` there. Gives its number.
    #[track_caller]
    pub fn batch(&self, nodes: usize, line: &str) -> u64 {
        let folder = self.site.path();
        let shown = folder.display();
        let (mark, asks) = match self.kind {
            Kind::OpenPbs => (
                "#PBS",
                format!(
                    "-N run -o {shown}/out -l select={nodes}:ncpus=1 -l place=scatter -l walltime=00:10:00"
                ),
            ),
            Kind::OpenLava | Kind::Ibm => {
                ("#BSUB", format!("-J run -o {shown}/out -n {nodes} -R \"span[ptile=1]\" -W 0:10"))
            }
            Kind::Cobalt => (
                "#COBALT",
                format!("-n {nodes} -t 10 --jobname run --cwd {shown} -O {shown}/run -e {shown}/out"),
            ),
        };
        let script = folder.join(format!("batch-{}.sh", self.jobs().len()));
        let mut file = fs::OpenOptions::new();
        let mut file = file.write(true).create_new(true).mode(0o700).open(&script).expect("a script");
        std::io::Write::write_all(&mut file, format!("#!/bin/sh\n{mark} {asks}\n{line}\n").as_bytes())
            .expect("a script");
        drop(file);
        let mut submit = self.site.program(self.bin.join(self.submits()));
        submit.current_dir(folder);
        match self.kind {
            Kind::OpenLava | Kind::Ibm => submit.stdin(fs::File::open(&script).expect("a script")),
            Kind::OpenPbs | Kind::Cobalt => submit.arg(&script),
        };
        let _ = Ran::of(&mut submit).expect_code(0);
        self.jobs().last().expect("a job").id
    }

    /// A job, once it is over.
    #[track_caller]
    pub fn end_of(&self, id: u64) -> Job {
        wait_for("the end of a job", || self.jobs().into_iter().find(|j| j.id == id && j.state == "ended"))
    }

    /// Nodes that launchers were told to reach.
    #[must_use]
    pub fn reached(&self) -> BTreeSet<String> {
        stand_ins::reached(&self.bin)
    }

    /// Calls of all commands so far, as lines.
    #[must_use]
    pub fn all_calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Calls of a command so far.
    #[must_use]
    pub fn calls(&self, command: &str) -> Vec<String> {
        let start = format!("{command} ");
        self.all_calls().into_iter().filter(|l| l.starts_with(&start) || l == command).collect()
    }

    /// Fails if two jobs have one name: something was submitted twice.
    #[track_caller]
    pub fn check_submits(&self) {
        let mut names: Vec<String> = self.jobs().into_iter().map(|j| j.name).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all, "submitted twice: {:#?}", self.jobs());
    }

    /// The command that submits.
    #[must_use]
    pub fn submits(&self) -> &'static str {
        match self.kind {
            Kind::OpenPbs | Kind::Cobalt => "qsub",
            Kind::OpenLava | Kind::Ibm => "bsub",
        }
    }

    /// The command that lists.
    #[must_use]
    pub fn lists(&self) -> &'static str {
        match self.kind {
            Kind::OpenPbs | Kind::Cobalt => "qstat",
            Kind::OpenLava | Kind::Ibm => "bjobs",
        }
    }

    fn records(&self) -> Vec<(PathBuf, Value)> {
        let entries = fs::read_dir(self.dir.join("jobs")).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|e| e.path()).collect();
        paths.retain(|p| p.extension().is_some_and(|e| e == "json"));
        paths.sort();
        let read = |path: PathBuf| {
            let text = fs::read_to_string(&path).ok()?;
            Some((path, serde_json::from_str(&text).ok()?))
        };
        paths.into_iter().filter_map(read).collect()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).expect("a file of the emulator")
    }

    fn write(&self, name: &str, text: &str) {
        replace(&self.dir.join(name), text);
    }
}

impl Kind {
    /// The launcher that its jobs have without an MPI.
    #[must_use]
    pub fn launcher(self) -> &'static str {
        match self {
            Kind::OpenPbs => "pbs_tmrsh",
            Kind::Ibm => "blaunch",
            Kind::OpenLava | Kind::Cobalt => "ssh",
        }
    }

    /// Whether its commands wait for a server that is away, instead of saying so.
    #[must_use]
    pub fn waits_while_down(self) -> bool {
        matches!(self, Kind::OpenLava | Kind::Ibm)
    }

    fn mode(self) -> &'static str {
        match self {
            Kind::OpenPbs => "openpbs",
            Kind::OpenLava => "openlava",
            Kind::Ibm => "ibm",
            Kind::Cobalt => "cobalt",
        }
    }

    fn settings(self) -> &'static [&'static str] {
        match self {
            Kind::OpenPbs => &["provider=pbs", "dialect=openpbs"],
            Kind::OpenLava => &["provider=lsf", "dialect=openlava"],
            Kind::Ibm => &["provider=lsf", "dialect=ibm"],
            Kind::Cobalt => &["provider=cobalt"],
        }
    }

    fn commands(self) -> &'static [&'static str] {
        match self {
            Kind::OpenPbs => &["qsub", "qstat", "qselect", "qdel"],
            Kind::OpenLava | Kind::Ibm => &["bsub", "bjobs", "bhist", "bkill", "bqueues", "lsid"],
            Kind::Cobalt => &["qsub", "qstat", "qdel"],
        }
    }
}

/// A command may read it at any time: a new file, not new bytes in the old one.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("tmp");
    fs::write(&new, text).expect("a file of the emulator");
    fs::rename(&new, path).expect("a file in its place");
}

impl Drop for Emulated {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("jobs of the emulator: {:#?}", self.jobs());
            let last: Vec<String> = self.all_calls().into_iter().rev().take(20).collect();
            eprintln!("its last calls, newest first: {last:#?}");
        }
    }
}
