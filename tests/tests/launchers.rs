//! Launchers that really run: Open MPI and MPICH's Hydra where they are installed, and stand-ins for the remote execution of PBS, LSF and ssh, which pass as
//! little of the environment as the real ones. One body for all managers, one for all programs of ranks. srun is in `slurm_launch.rs`.

#![expect(clippy::unwrap_used, reason = "a test ends where its own preparations fail")]

use pf_tests::ranks::{Program, allowed_cpus, run_programs};
use pf_tests::site::{Ran, Site, kill_hard, wait_for};
use pf_tests::stand_ins;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A folder that is first in PATH, with the stand-ins, and the real MPI launchers by the names that other systems give them.
fn tools(site: &Site) -> PathBuf {
    let dir = site.path().join("bin");
    fs::create_dir(&dir).unwrap();
    stand_ins::install(&dir);
    if let Some(path) = installed("mpirun.openmpi") {
        symlink(path, dir.join("mpirun")).unwrap();
    }
    dir
}

fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file());
    if found.is_none() {
        println!("SKIPPED: {program} is not installed; scripts/setup --tests does it");
    }
    found
}

fn host() -> String {
    nix::unistd::gethostname().unwrap().into_string().unwrap()
}

/// A whole `pf run` in a pretended batch job: every node has a manager, tasks see the set-up of the batch script, nothing is left of the launcher's own
/// variables, and nothing stays behind.
fn managers_run(launcher: &str, nodes: &[&str], variable: &str) {
    let site = Site::new();
    let tools = tools(&site);
    let config = site.path().join("conf.toml");
    let count = nodes.len();
    fs::write(&config, format!("[endpoints.local]\nlauncher = \"{launcher}\"\nnodes_per_block = {count}\n"))
        .unwrap();
    let list = match variable {
        "LSB_HOSTS" => nodes.join(" "),
        _ => {
            let file = site.path().join("nodes");
            fs::write(&file, nodes.join("\n") + "\n").unwrap();
            file.display().to_string()
        }
    };
    let script = "echo \"set $SET_UP by $PF_ATTEMPT\"; env | grep -E '^(OMPI_COMM|PMI|PMIX|HYDI|MPI_LOCAL)' | sed 's/^/left /'; sleep 0.05";
    let mut command = site.command(&[
        "--config",
        config.to_str().unwrap(),
        "run",
        "--array",
        "1-40",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    command.env("PATH", path).env(variable, list).env("SET_UP", "by  the script");
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{launcher}: {out}\n{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines.iter().filter(|line| line.starts_with("set by  the script by ")).count(),
        40,
        "{launcher}: {out}\n{err}"
    );
    assert!(!out.contains("left "), "{launcher}: {out}");
    assert!(site.pids().is_empty(), "{launcher}: {:?}", site.pids());
}

#[test]
fn managers_by_the_remote_execution_of_pbs() {
    managers_run("pbs_tmrsh", &["a", "b"], "PBS_NODEFILE");
    managers_run("pbsdsh", &["a", "a", "b"], "PBS_NODEFILE");
}

#[test]
fn managers_by_the_remote_execution_of_lsf() {
    managers_run("blaunch", &["a", "b"], "LSB_HOSTS");
}

#[test]
fn managers_by_ssh() {
    managers_run("ssh", &["a", "b"], "PBS_NODEFILE");
}

#[test]
fn managers_by_open_mpi() {
    if installed("mpirun.openmpi").is_some() {
        managers_run("openmpi", &[&host()], "PBS_NODEFILE");
    }
}

#[test]
fn managers_by_hydra() {
    if installed("mpiexec.hydra").is_some() {
        managers_run("hydra", &["localhost"], "PBS_NODEFILE");
    }
}

#[test]
fn a_killed_manager_leaves_nothing_running_and_its_task_runs_again_at_once() {
    let mut site = Site::new();
    let tools = tools(&site);
    let config = site.path().join("conf.toml");
    fs::write(&config, "[endpoints.local]\nlauncher = \"pbs_tmrsh\"\nnodes_per_block = 2\n").unwrap();
    fs::write(site.path().join("nodes"), "a\nb\n").unwrap();
    site.set("PATH", format!("{}:{}", tools.display(), std::env::var("PATH").unwrap()));
    site.set("PBS_NODEFILE", site.path().join("nodes").display().to_string());
    let pids = site.path().join("pids");
    fs::create_dir(&pids).unwrap();
    // The first attempt does not heed SIGTERM and would run for ever; the second looks whether it still does.
    let script = "trap '' TERM; first=$(ls); echo $$ > $PF_ATTEMPT
        if [ -z \"$first\" ]; then while :; do sleep 1; done; fi
        if kill -0 $(cat $first) 2>/dev/null; then echo still there; else echo it is gone; fi";
    let dir = pids.display().to_string();
    let args = ["--config", config.to_str().unwrap(), "run", "--cwd", &dir, "--", "sh", "-c", script];
    let began = std::time::Instant::now();
    let running = site.spawn(&args);
    let task: i32 = wait_for("the task to begin", || {
        let file = fs::read_dir(&pids).ok()?.next()?.ok()?.path();
        fs::read_to_string(file).ok()?.trim().parse().ok()
    });
    let stat = fs::read_to_string(format!("/proc/{task}/stat")).unwrap();
    let manager: i32 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
    kill_hard(manager);
    let ran = running.end();
    assert_eq!((ran.code, ran.stdout.trim()), (0, "it is gone"), "{ran:?}");
    // Without proof it would have waited for the lease.
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
}

#[test]
fn a_second_pilot_leaves_at_once() {
    let site = Site::new();
    let job = site.pf(&["submit", "--quiet", "--", "sleep", "600"]).expect_code(0).stdout.trim().to_owned();
    let ticket = wait_for("a manager", || {
        let manager = site.pids().into_iter().find(|(_, line)| line.contains(" manager "))?.1;
        let ticket = manager.split("--ticket ").nth(1)?.split(' ').next()?.to_owned();
        Some(ticket)
    });
    let managers = || site.pids_of(" manager ").len();
    let before = managers();
    let second = |says: &str| {
        let began = std::time::Instant::now();
        let ran = Ran::of(&mut site.command(&["pilot", "--ticket", &ticket])).expect_code(2);
        assert!(began.elapsed().as_millis() < 1_000, "{:?}", began.elapsed());
        ran.says(&[says]);
        assert_eq!(managers(), before);
    };
    second("has a pilot already");
    // Without the file it is the relay that knows.
    fs::remove_file(Path::new(&ticket).with_file_name("claim-0")).unwrap();
    second("the relay refused this pilot");
    let _ = site.pf(&["cancel", &job]).expect_code(0);
}

/// Two MPI programs at once, each on its half of the cores, and then one whose ranks fail differently.
fn programs_run(launcher: &str, host: &str, compiler: &str, tools: &Path) {
    let cpus = allowed_cpus();
    if cpus.len() < 2 {
        println!("SKIPPED: one CPU only, disjoint cores cannot be had");
        return;
    }
    let (left, right) = cpus.split_at(cpus.len() / 2);
    let hello = hello(tools, compiler);
    let program = |name: &str, cpus: &[u32]| Program {
        name: name.into(),
        argv: vec![hello.display().to_string()],
        hosts: vec![host.into()],
        cpus: cpus.to_vec(),
        ranks: 2,
    };
    let ran = run_programs(launcher, tools, &[], &[program("one", left), program("two", right)]);
    for (ran, half) in ran.iter().zip([left, right]) {
        assert_eq!(ran.code, 0, "{launcher}: {ran:?}");
        // What MPI itself says: both ranks are of one program. And what the kernel says of their binding.
        assert!(
            ran.stdout.contains("rank 0 of 2, sum 1") && ran.stdout.contains("rank 1 of 2, sum 1"),
            "{launcher}: {ran:?}"
        );
        let bound: Vec<u32> = ran.bound();
        assert!(
            bound.iter().all(|cpu| half.contains(cpu)) && !bound.is_empty(),
            "{launcher}: {bound:?} in {half:?}"
        );
    }
    let fails = Program {
        argv: ["sh", "-c", "exit $((PF_RANK * 3))"].map(String::from).to_vec(),
        ..program("fails", left)
    };
    assert_eq!(run_programs(launcher, tools, &[], &[fails])[0].code, 3, "{launcher}");
}

/// An MPI program that tells who it is, and waits until the other program is there too.
fn hello(tools: &Path, compiler: &str) -> PathBuf {
    const TEXT: &str = r#"
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
  int rank, size, sum;
  char line[256];
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  fclose(fopen(getenv("HERE"), "a"));
  for (int n = 0; n < 3000 && access(getenv("OTHER"), F_OK); n++) usleep(10000);
  if (access(getenv("OTHER"), F_OK)) return 9;
  FILE *status = fopen("/proc/self/status", "r");
  while (fgets(line, sizeof line, status))
    if (!strncmp(line, "Cpus_allowed_list:", 18)) printf("rank %d of %d, sum %d\nbound %s", rank, size, sum, line + 19);
  fflush(stdout);
  MPI_Finalize();
  return 0;
}
"#;
    let (source, binary) = (tools.join("hello.c"), tools.join("hello"));
    fs::write(&source, TEXT).unwrap();
    let built = std::process::Command::new(compiler).arg(&source).arg("-o").arg(&binary).output().unwrap();
    assert!(built.status.success(), "{compiler}: {}", String::from_utf8_lossy(&built.stderr));
    binary
}

#[test]
fn programs_side_by_side_under_open_mpi() {
    if installed("mpirun.openmpi").is_some() && installed("mpicc.openmpi").is_some() {
        let site = Site::new();
        programs_run("openmpi", &host(), "mpicc.openmpi", &tools(&site));
    }
}

#[test]
fn programs_side_by_side_under_hydra() {
    if installed("mpiexec.hydra").is_some() && installed("mpicc.mpich").is_some() {
        let site = Site::new();
        programs_run("hydra", "localhost", "mpicc.mpich", &tools(&site));
    }
}

#[test]
fn a_rank_that_is_not_as_planned_does_not_run() {
    let site = Site::new();
    let rank = |env: &[(&str, &str)], pus: &str| {
        let args = [
            "rank",
            "--family",
            "hydra",
            "--attempt",
            "1.2",
            "--per-node",
            "2",
            "--size",
            "2",
            "--pus",
            pus,
            "--",
            "echo",
            "ran",
        ];
        let output = site.command(&args).envs(env.iter().copied()).output().unwrap();
        assert!(output.stdout.is_empty() && output.status.code() == Some(1), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let placed = [("PMI_RANK", "1"), ("MPI_LOCALRANKID", "1"), ("PMI_SIZE", "2")];
    assert!(rank(&[], "0/1").contains("PMI_RANK is not set"));
    assert!(rank(&[("PMI_SIZE", "1"), ("PMI_RANK", "0")], "0/1").contains("PMI_SIZE is 1, but 2 ranks"));
    assert!(rank(&placed, "0").contains("no share for rank 1"));
    // A CPU that no machine of today has.
    assert!(rank(&placed, "0/1023").contains("bind rank 1 to CPUs [1023]"));
}
