//! The real Slurm of `scripts/slurm-cluster`, for end-to-end tests: found by PF_TEST_SLURM, its slurm.conf. Without it such tests are skipped;
//! `scripts/test` always sets it.

use crate::repo_root;
use crate::site::{Ran, Site, wait_for};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Who has the nodes: tests that need few of them share the cluster, those that need all, or break one, have it alone.
static TURN: RwLock<()> = RwLock::new(());

/// Settings of endpoints in tests: a scheduler that nobody else uses may be asked often, and its nodes have two slots each whatever this machine has.
const QUICK: [&str; 3] = ["poll=1s", "submit_every=1ms", "cores=2"];

enum Turn {
    Alone {
        _guard: RwLockWriteGuard<'static, ()>,
    },
    Shared {
        _guard: RwLockReadGuard<'static, ()>,
    },
    /// It was brought up for this test, in this folder.
    Own {
        _folder: tempfile::TempDir,
    },
}

/// A cluster, for as long as it is held.
pub struct Cluster {
    conf: PathBuf,
    turn: Turn,
}

/// A line of squeue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// Number of the batch job.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `PENDING`, `RUNNING`, ..
    pub state: String,
    /// Why it waits.
    pub reason: String,
    /// Nodes that it has, as Slurm writes them.
    pub nodes: String,
}

impl Cluster {
    fn find(turn: impl FnOnce() -> Turn) -> Option<Cluster> {
        let Some(conf) = std::env::var_os("PF_TEST_SLURM").map(PathBuf::from) else {
            println!(
                "SKIPPED: needs Slurm: eval \"$(scripts/slurm-cluster env)\"; PF_TEST_SLURM=$SLURM_CONF"
            );
            return None;
        };
        let cluster = Cluster { conf, turn: turn() };
        if matches!(cluster.turn, Turn::Alone { .. }) {
            wait_for("all nodes to be free", || cluster.is_idle().then_some(()));
        }
        Some(cluster)
    }

    /// All nodes, and nobody else on them. None: there is no cluster, and the test is skipped.
    #[must_use]
    pub fn alone() -> Option<Cluster> {
        Cluster::find(|| Turn::Alone { _guard: TURN.write().unwrap_or_else(PoisonError::into_inner) })
    }

    /// Beside other tests.
    #[must_use]
    pub fn shared() -> Option<Cluster> {
        Cluster::find(|| Turn::Shared { _guard: TURN.read().unwrap_or_else(PoisonError::into_inner) })
    }

    /// One of its own, brought up with these words and variables for `scripts/slurm-cluster`. None: there is no Slurm, or it lacks one of `programs`.
    #[must_use]
    pub fn own(up: &[&str], env: &[(&str, &str)], programs: &[&str]) -> Option<Cluster> {
        let missing = programs.iter().find(|p| !Path::new(&real_path(p)).exists());
        if let (Some(program), Some(_)) = (missing, std::env::var_os("PF_TEST_SLURM")) {
            println!("SKIPPED: there is no {program} here");
            return None;
        }
        let _ = std::env::var_os("PF_TEST_SLURM")?;
        let folder = tempfile::Builder::new().prefix("pf-sl-").tempdir().expect("a temporary folder");
        let conf = folder.path().join("c/etc/slurm.conf");
        let mut command = Command::new(repo_root().join("scripts/slurm-cluster"));
        command
            .arg("up")
            .args(up)
            .envs(env.iter().copied())
            .env("SLURM_CLUSTER_DIR", folder.path().join("c"));
        let _ = Ran::of(command.stdin(Stdio::null())).expect_code(0);
        Some(Cluster { conf, turn: Turn::Own { _folder: folder } })
    }

    /// Its slurm.conf.
    #[must_use]
    pub fn conf(&self) -> &Path {
        &self.conf
    }

    /// Its state directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.conf.ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default()
    }

    /// A command of Slurm, run to its end.
    #[must_use]
    pub fn slurm(&self, argv: &[&str]) -> Ran {
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]).env("SLURM_CONF", &self.conf).stdin(Stdio::null());
        Ran::of(&mut command)
    }

    /// A verb of `scripts/slurm-cluster`.
    #[track_caller]
    pub fn control(&self, verb: &[&str]) {
        let mut command = Command::new(repo_root().join("scripts/slurm-cluster"));
        command.args(verb).env("SLURM_CLUSTER_DIR", self.dir()).stdin(Stdio::null());
        let _ = Ran::of(&mut command).expect_code(0);
    }

    /// Jobs that are not over, of which the name contains `name`.
    #[must_use]
    pub fn queue(&self, name: &str) -> Vec<Queued> {
        let listed = self.slurm(&["squeue", "-h", "-o", "%i|%j|%T|%r|%N"]).expect_code(0);
        let fields = |line: &str| {
            let fields: Vec<String> = line.split('|').map(str::to_owned).collect();
            let [id, name, state, reason, nodes] = fields.try_into().ok()?;
            Some(Queued { id, name, state, reason, nodes })
        };
        listed.stdout.lines().filter_map(fields).filter(|q| q.name.contains(name)).collect()
    }

    /// Numbers of all jobs that Slurm remembers, also of those that are over, of which the name contains `name`.
    #[must_use]
    pub fn ever(&self, name: &str) -> Vec<String> {
        let listed = self.slurm(&["squeue", "-h", "-t", "all", "-o", "%i|%j"]).expect_code(0);
        let found = listed.stdout.lines().filter_map(|l| l.split_once('|')).filter(|(_, n)| n.contains(name));
        found.map(|(id, _)| id.to_owned()).collect()
    }

    /// This host's address on the network of the nodes, if they have one.
    #[must_use]
    pub fn login_address(&self) -> Option<String> {
        let vars = fs::read_to_string(self.dir().join("cluster.vars")).ok()?;
        let value = |name: &str| vars.lines().find_map(|l| l.strip_prefix(name)).map(str::to_owned);
        value("CTLADDR=").filter(|_| value("NETNS=").as_deref() == Some("1"))
    }

    /// Adds an endpoint of this cluster.
    #[track_caller]
    pub fn endpoint(&self, site: &Site, name: &str, settings: &[&str]) {
        let python = format!("python={}", crate::site::python());
        let add = ["endpoint", "add", name, "--profile", "generic-slurm", "--set", &python];
        let key = |setting: &'static str| setting.split('=').next().unwrap_or(setting);
        let unsaid = |quick: &&'static str| !settings.iter().any(|s| s.split('=').next() == Some(key(quick)));
        let quick: Vec<&str> = QUICK.into_iter().filter(unsaid).collect();
        let _ = site.pf(&[&add, &quick[..], settings].concat()).expect_code(0);
    }

    /// Submits a script line as a batch job with this site's environment, its output in `out` there; its number.
    #[track_caller]
    pub fn sbatch(&self, site: &Site, options: &[&str], line: &str) -> String {
        let mut command = site.program(real_path("sbatch"));
        command.args(["--parsable", "-o", "out"]).args(options).args(["--wrap", line]);
        Ran::of(&mut command).expect_code(0).stdout.trim().to_owned()
    }

    /// Waits for the end of a batch job: its state and its exit code as Slurm writes it (`0:0`).
    #[track_caller]
    pub fn end_of(&self, id: &str) -> (String, String) {
        wait_for(&format!("the end of job {id}"), || {
            let state = self.job_field(id, "JobState")?;
            let over = !["PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"]
                .contains(&state.as_str());
            over.then(|| (state, self.job_field(id, "ExitCode").unwrap_or_default()))
        })
    }

    /// One field of `scontrol show job`.
    #[must_use]
    pub fn job_field(&self, id: &str, field: &str) -> Option<String> {
        let shown = self.slurm(&["scontrol", "show", "job", "-o", id]).stdout;
        let words = shown.split_whitespace().filter_map(|w| w.split_once('='));
        words.filter(|(name, _)| *name == field).map(|(_, value)| value.to_owned()).next()
    }

    fn is_idle(&self) -> bool {
        let nodes = self.slurm(&["sinfo", "-h", "-N", "-p", "batch", "-o", "%T"]).stdout;
        nodes.lines().count() > 0 && nodes.lines().all(|state| state == "idle")
    }

    /// A place whose `pf` uses this cluster, with wrappers around its commands that note each call.
    #[must_use]
    pub fn site(&self) -> Site {
        let mut site = Site::new();
        let bin = site.path().join("bin");
        fs::create_dir(&bin).expect("a folder for wrappers");
        let path = std::env::var("PATH").unwrap_or_default();
        site.set("PATH", format!("{}:{path}", bin.display()));
        site.set("SLURM_CONF", self.conf.display().to_string());
        for command in ["sbatch", "squeue", "scancel", "scontrol", "sacct"] {
            let real = real_path(command);
            let wrapper = format!(
                "#!/bin/sh\necho \"$(date +%s.%N) $*\" >> '{dir}/calls.{command}'\n\
                 while [ -e '{dir}/hang.{command}' ]; do sleep 0.05; done\nexec '{real}' \"$@\"\n",
                dir = site.path().display()
            );
            wrap(&site, command, &wrapper);
        }
        site
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if matches!(self.turn, Turn::Own { .. }) {
            self.control(&["down"]);
        }
    }
}

/// Submits tasks; the job's id.
#[track_caller]
pub fn submit(site: &Site, args: &[&str]) -> String {
    site.pf(&[&["submit", "--quiet"], args].concat()).expect_code(0).stdout.trim().to_owned()
}

/// Blocks of an endpoint as `pf block list` has them, oldest first.
#[must_use]
pub fn blocks(site: &Site, endpoint: &str) -> Vec<Value> {
    let listed = site.pf(&["block", "list", "--endpoint", endpoint, "--json"]).expect_code(0).json_lines();
    listed.into_iter().map(|row| row["block"].clone()).collect()
}

/// How the first block of an endpoint ended, once it has.
#[track_caller]
pub fn end_of_first(site: &Site, endpoint: &str) -> Value {
    wait_for(&format!("the end of the first block of {endpoint}"), || {
        let end = blocks(site, endpoint).first()?["state"].get("ended").cloned();
        end.filter(|e| !e.is_null())
    })
}

/// What `pf endpoint explain` says.
#[must_use]
pub fn explain(site: &Site, endpoint: &str) -> String {
    site.pf(&["endpoint", "explain", endpoint]).expect_code(0).stdout
}

/// Where a command lies.
#[must_use]
pub fn real_path(command: &str) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path.split(':').map(|dir| format!("{dir}/{command}")).find(|file| Path::new(file).exists());
    found.unwrap_or_else(|| command.to_owned())
}

/// Puts `script` in place of a command, for this site's `pf`.
pub fn wrap(site: &Site, command: &str, script: &str) {
    let file = site.path().join("bin").join(command);
    // A running shell reads its script as it goes: a new file, not new bytes in the old one.
    let new = file.with_extension("new");
    fs::write(&new, script).expect("a wrapper");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("an executable wrapper");
    fs::rename(&new, &file).expect("a wrapper in its place");
}

/// Calls of a command so far: when (seconds) and with which arguments.
#[must_use]
pub fn calls(site: &Site, command: &str) -> Vec<(f64, String)> {
    let text = fs::read_to_string(site.path().join(format!("calls.{command}"))).unwrap_or_default();
    let line = |l: &str| l.split_once(' ').and_then(|(at, args)| Some((at.parse().ok()?, args.to_owned())));
    text.lines().filter_map(line).collect()
}

/// Lets a command hang until the result is dropped.
#[must_use]
pub fn hang(site: &Site, command: &str) -> Hang {
    let file = site.path().join(format!("hang.{command}"));
    fs::write(&file, "").expect("a mark for the wrapper");
    Hang(file)
}

/// See [`hang`].
pub struct Hang(PathBuf);

impl Drop for Hang {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
