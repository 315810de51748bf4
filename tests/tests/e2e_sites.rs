//! `pf site`, profiles as a layer of the configuration, and the admin's limits, through the real binary. Schedulers are small programs in PATH that
//! answer from what real ones said (`site-profiles/fixtures/README.md` tells where that is from).

#![expect(clippy::unwrap_used, reason = "a test ends where its own preparations fail")]

use pf_tests::repo_root;
use pf_tests::site::{Ran, Site, wait_for};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A place with a folder of programs before all others in PATH.
struct Machine {
    site: Site,
    bin: PathBuf,
}

impl Machine {
    fn new() -> Machine {
        let site = Site::new();
        let bin = site.path().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        Machine { site, bin }
    }

    /// A program that prints `version` when its first argument is `--version` or there is none, else a fixture.
    fn program(&self, name: &str, version: &str, fixture: &str) {
        let file = repo_root().join("site-profiles/fixtures").join(fixture);
        let text = format!(
            "#!/bin/sh\ncase \"$1\" in --version|'') echo '{version}';; *) cat '{}';; esac\n",
            file.display()
        );
        std::fs::write(self.bin.join(name), text).unwrap();
        std::fs::set_permissions(self.bin.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.site.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn pf(&self, args: &[&str], env: &[(&str, &str)]) -> Ran {
        let path = format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = self.site.command(args);
        command.env("PATH", path).envs(env.iter().copied());
        Ran::of(&mut command)
    }
}

/// What `pf site check --json` found of one kind.
fn found(ran: &Ran, about: &str) -> Vec<(String, String)> {
    let lines = ran.json_lines();
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    lines.iter().filter(|f| f["about"] == about).map(|f| (text(&f["verdict"]), text(&f["words"]))).collect()
}

#[test]
fn profiles_are_listed_shown_and_detected() {
    let machine = Machine::new();
    let listed = machine.pf(&["site", "list", "--json"], &[]).expect_code(0).json_lines();
    assert!(listed.len() >= 27, "{} profiles", listed.len());
    assert!(
        listed.iter().any(|p| p["name"] == "theta" && p["status"] == "retired" && p["scheduler"] == "cobalt")
    );
    let shown = machine.pf(&["site", "show", "--json", "aurora"], &[]).expect_code(0).json();
    assert_eq!(shown["endpoint"]["options"][0], "-l filesystems=home:flare");
    let toml = machine.pf(&["site", "show", "--toml", "aurora"], &[]).expect_code(0).stdout;
    assert!(toml.contains("argonne-lcf/user-guides"), "its sources are in it");
    machine
        .pf(&["site", "show", "arora"], &[])
        .expect_code(4)
        .says(&["no site profile", "the nearest profile is aurora"]);
    let detected = machine.pf(&["site", "detect", "--quiet"], &[("NERSC_HOST", "perlmutter")]).expect_code(0);
    assert_eq!(detected.stdout, "perlmutter\n");
    machine.pf(&["site", "detect"], &[]).expect_code(4).says(&["pf site new"]);
}

#[test]
fn a_check_compares_profile_endpoint_and_scheduler() {
    let machine = Machine::new();
    machine.program("sinfo", "slurm-wlm 22.05.8", "slurm-sinfo.txt");
    machine.write(
        "root/site-profiles/small.toml",
        "title = \"Small\"\nstatus = \"active\"\nrequires = [\"account\"]\n[endpoint]\nprovider = \"slurm\"\nlauncher = \"srun\"\nqueue = \"debug\"\nwalltime = \"5m\"\ninterfaces = [\"lo\"]\n[[queues]]\nname = \"gone\"\nnodes_max = 2\n",
    );
    machine.write("root/config.toml", "[endpoints.c]\nprofile = \"small\"\n");
    let ran = machine.pf(&["site", "check", "--json"], &[]).expect_code(1);
    assert_eq!(found(&ran, "scheduler"), [("ok".into(), "slurm answers: slurm-wlm 22.05.8".into())]);
    assert_eq!(
        found(&ran, "queues"),
        [("warning".into(), "the profile has gone, the scheduler does not".into())]
    );
    let endpoint = found(&ran, "endpoint c");
    assert_eq!(endpoint[0], ("problem".into(), "account is not set, and Small refuses jobs without".into()));
    assert_eq!(endpoint[1], ("ok".into(), "blocks of 1 nodes for 5 minutes fit".into()));
    assert!(
        found(&ran, "interfaces")[0].1.starts_with("nodes would reach the relay at 127.0.0.1"),
        "{}",
        ran.stdout
    );

    machine.write(
        "root/config.toml",
        "[endpoints.c]\nprofile = \"small\"\naccount = \"x\"\nwalltime = \"1h\"\n",
    );
    let ran = machine.pf(&["site", "check", "--json"], &[]).expect_code(1);
    let expected = "a walltime of 60 minutes is over the scheduler's limit of debug, 5";
    assert_eq!(found(&ran, "endpoint c"), [("problem".into(), expected.into())]);

    machine.write("root/config.toml", "[endpoints.c]\nprofile = \"small\"\naccount = \"x\"\n");
    machine.pf(&["site", "check"], &[]).expect_code(0);
    // The scheduler does not answer: its own words are told.
    machine.write("bin/sinfo", "#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n");
    let ran = machine.pf(&["site", "check", "--json"], &[]).expect_code(1);
    assert!(found(&ran, "scheduler")[0].1.ends_with("Unable to contact slurm controller"), "{}", ran.stdout);
}

#[test]
fn a_probe_looks_around_on_a_node_and_leaves_nothing() {
    let machine = Machine::new();
    let ran = machine.pf(&["site", "check", "--submit", "--endpoint", "local", "--json"], &[]).expect_code(0);
    assert_eq!(found(&ran, "network"), [("ok".into(), "the node reaches 127.0.0.1".into())]);
    for place in ["shared", "output"] {
        assert_eq!(
            found(&ran, &format!("place {place}")),
            [("ok".into(), "the node sees it and can write".into())]
        );
    }
    assert_eq!(found(&ran, "python").len(), 2);
    assert_eq!(found(&ran, "TMPDIR")[0].0, "ok");
    for place in ["durable", "shared", "local", "output"] {
        let left: Vec<_> = std::fs::read_dir(machine.site.path().join("root").join(place)).unwrap().collect();
        assert!(left.is_empty(), "{place}: {left:?}");
    }
}

#[test]
fn a_profile_is_written_from_what_each_scheduler_says() {
    let machine = Machine::new();
    machine.program("sinfo", "slurm-wlm 22.05.8", "slurm-sinfo.txt");
    machine.program("bqueues", "", "lsf-bqueues-l.txt");
    machine.program("lshosts", "", "lsf-lshosts-w.txt");
    machine.program("lsid", "OpenLava 4.0dev4", "lsf-lsid-openlava.txt");
    machine.pf(&["site", "new", "two"], &[]).expect_code(2).says(&["slurm and lsf", "--scheduler"]);
    machine
        .pf(&["site", "new", "mine", "--scheduler", "slurm"], &[])
        .expect_code(0)
        .says(&["site-profiles/mine.toml"]);
    machine
        .pf(&["site", "new", "mine", "--scheduler", "slurm"], &[])
        .expect_code(3)
        .says(&["is there already"]);
    let shown = machine.pf(&["site", "show", "mine", "--json"], &[]).expect_code(0).json();
    assert_eq!(
        (&shown["endpoint"]["queue"], &shown["queues"][1]["name"]),
        (&"debug".into(), &"debug".into())
    );
    assert_eq!(shown["nodes"][0]["gpus"], 4);
    // It is a layer like ours: with its file and line.
    machine.write("root/config.toml", "[endpoints.c]\nprofile = \"mine\"\n");
    let config = machine.pf(&["config", "show", "--json"], &[]).expect_code(0).json();
    let walltime = &config["endpoints.c.walltime"];
    assert_eq!(walltime["value"], "5m");
    let from = walltime["from"].as_str().unwrap();
    assert!(from.starts_with("profile /") && from.contains("site-profiles/mine.toml:"), "{from}");
    let lsf =
        machine.pf(&["site", "new", "l", "--scheduler", "lsf", "--out", "-"], &[]).expect_code(0).stdout;
    assert!(lsf.contains("dialect = \"openlava\"") && lsf.contains("walltime_max_minutes = 720"), "{lsf}");
    machine.program("qstat", "pbs_version = 23.06.06", "pbs-qstat-Q.json");
    machine.program("pbsnodes", "", "pbs-pbsnodes-a.txt");
    let pbs =
        machine.pf(&["site", "new", "p", "--scheduler", "pbs", "--out", "-"], &[]).expect_code(0).stdout;
    assert!(pbs.contains("dialect = \"openpbs\"") && pbs.contains("name = \"8c4g\"\ncount = 2"), "{pbs}");
    machine.program("qstat", "", "cobalt-qstat-Q.txt");
    machine.program("qsub", "Cobalt", "cobalt-version.txt");
    let cobalt =
        machine.pf(&["site", "new", "c", "--scheduler", "cobalt", "--out", "-"], &[]).expect_code(0).stdout;
    assert!(cobalt.contains("queue = \"default\"") && cobalt.contains("running_max = 2"), "{cobalt}");
}

#[test]
fn the_admin_s_limits_hold_and_name_file_and_key() {
    let machine = Machine::new();
    machine.write(
        "etc/config.toml",
        "[limits]\nwalltime_max = \"2h\"\nqueues = [\"debug\"]\nnodes_per_block_max = 4\n",
    );
    machine.write("etc/site-profiles/ours.toml", "title = \"Ours\"\nstatus = \"active\"\n[endpoint]\nprovider = \"slurm\"\nlauncher = \"srun\"\nqueue = \"debug\"\n");
    let etc = machine.site.path().join("etc");
    let env = [("PILOTFISH_ETC", etc.to_str().unwrap())];
    let file = etc.join("config.toml").display().to_string();
    for (line, key, limit) in [
        ("walltime = \"3h\"", "endpoints.c.walltime", "limits.walltime_max"),
        ("queue = \"batch\"", "endpoints.c.queue", "limits.queues"),
        ("nodes_per_block = 5", "endpoints.c.nodes_per_block", "limits.nodes_per_block_max"),
        ("options = [\"--time=3:00:00\"]", "endpoints.c.options", "limits.walltime_max"),
    ] {
        machine.write("root/config.toml", &format!("[endpoints.c]\nprofile = \"ours\"\n{line}\n"));
        let ran = machine.pf(&["config", "show"], &env).expect_code(2);
        ran.says(&["root/config.toml:3", key, limit, &file]);
    }
    // What is below the admin's file is cut, and says so.
    machine.write("root/config.toml", "[endpoints.c]\nprofile = \"ours\"\n");
    let config = machine.pf(&["config", "show", "--json"], &env).expect_code(0).json();
    assert_eq!(config["endpoints.c.walltime"]["value"], "2h");
    assert_eq!(config["endpoints.c.walltime"]["from"], format!("{file}:2"));
    // A profile of the user's own is no way around.
    machine.write("root/site-profiles/ours.toml", "title = \"Mine\"\nstatus = \"active\"\n[endpoint]\nprovider = \"slurm\"\nlauncher = \"srun\"\nqueue = \"batch\"\n");
    machine
        .pf(&["config", "show"], &env)
        .expect_code(2)
        .says(&["root/site-profiles/ours.toml:6", "limits.queues"]);
}

#[test]
fn an_endpoint_that_its_machine_would_refuse_keeps_no_other_from_being_served() {
    let machine = Machine::new();
    machine.write("root/config.toml", "[endpoints.p]\nprofile = \"perlmutter\"\ninterfaces = [\"lo\"]\n\n[endpoints.q]\nprofile = \"generic-slurm\"\ninterfaces = [\"nosuch0\"]\n");
    let env = [("PSCRATCH", "/tmp")];
    let job = machine.pf(&["submit", "--quiet", "--", "true"], &env).expect_code(0).stdout;
    machine.pf(&["wait", job.trim()], &env).expect_code(0);
    let row = |name: &str| machine.pf(&["endpoint", "show", name, "--json"], &env).expect_code(0).json();
    assert_eq!(row("p")["state"], "broken");
    let why = row("p")["broken"].as_str().unwrap().to_owned();
    let file = machine.site.path().join("root/config.toml");
    for word in [
        "Perlmutter refuses jobs without account",
        "set endpoints.p.account",
        &format!("{}:2", file.display()),
    ] {
        assert!(why.contains(word), "{why}");
    }
    assert!(row("q")["broken"].as_str().unwrap().contains("no interface \"nosuch0\""));
    assert_eq!(row("local")["state"], "connected");
    // What waits there tells why, and goes on once the setting is there.
    let job = machine.pf(&["submit", "--quiet", "--endpoint", "p", "--", "true"], &env).expect_code(0).stdout;
    let said = machine.pf(&["job", "show", job.trim()], &env).expect_code(0).stdout;
    assert!(said.contains("endpoint p is broken") && said.contains("set endpoints.p.account"), "{said}");
    machine.write(
        "root/config.toml",
        "[endpoints.p]\nprofile = \"perlmutter\"\naccount = \"m1\"\ninterfaces = [\"lo\"]\n",
    );
    machine.pf(&["broker", "stop"], &env).expect_code(0);
    assert_eq!(
        wait_for("its relay", || Some(row("p")).filter(|r| r["state"] == "connected"))["broken"],
        Value::Null
    );
    machine.pf(&["cancel", job.trim()], &env).expect_code(0);
    // PILOTFISH_DIR holds the places; elsewhere the profile's variable must be there.
    machine.pf(&["config", "show"], &env).expect_code(0);
}
