//! Schedulers that are not there, for end-to-end tests: `tests/emulator` plays them, in a folder of the test's own, with commands of their
//! names first in PATH.

use crate::repo_root;
use crate::site::Site;
use serde_json::{Value, json};
use std::fs;
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
}

/// See the module.
pub struct Emulated {
    kind: Kind,
    dir: PathBuf,
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
        let path = std::env::var("PATH").unwrap_or_default();
        site.set("PATH", format!("{}:{path}", bin.display()));
        site.set("PF_EMULATOR_DIR", dir.display().to_string());
        let emulated = Emulated { kind, dir, site };
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
        };
        self.records().into_iter().map(|(_, value)| job(value)).collect()
    }

    /// Jobs that are not over.
    #[must_use]
    pub fn live(&self) -> Vec<Job> {
        self.jobs().into_iter().filter(|j| j.state != "ended").collect()
    }

    /// What happens to a job behind the back of `pf`: `cancelled` (by its user) or `lost` (its node).
    pub fn strike(&self, id: u64, how: &str) {
        for (path, mut value) in self.records() {
            if value["id"] == id {
                value["kill"] = how.into();
                replace(&path, &value.to_string());
            }
        }
    }

    /// Calls of a command so far, as lines.
    #[must_use]
    pub fn calls(&self, command: &str) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        let start = format!("{command} ");
        text.lines().filter(|l| l.starts_with(&start) || *l == command).map(str::to_owned).collect()
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
            Kind::OpenLava | Kind::Ibm => &["bsub", "bjobs", "bhist", "bkill", "lsid"],
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
            let calls = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
            let last: Vec<&str> = calls.lines().rev().take(20).collect();
            eprintln!("its last calls, newest first: {last:#?}");
        }
    }
}
