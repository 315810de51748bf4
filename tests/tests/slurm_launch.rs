//! srun and Slurm's lists of nodes, on the real Slurm.

use pf_tests::notes::Notes;
use pf_tests::ranks::{Program, allowed_cpus, run_programs};
use pf_tests::site::{kill_hard, pf_binary, wait_for};
use pf_tests::slurm::Cluster;
use std::fs;
use std::time::Instant;

/// Small numbers without a library for them: the lists need only differ.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// A list as Slurm writes them, of at most two brackets in a name: with three, Slurm's own order is odd.
    fn hostlist(&mut self) -> String {
        let names: Vec<String> = (0..=self.below(3)).map(|_| self.name()).collect();
        names.join(",")
    }

    fn name(&mut self) -> String {
        let mut name = ["n", "nid", "rack-a", "x1000c0s"][self.below(4) as usize].to_string();
        for _ in 0..self.below(3) {
            let ranges: Vec<String> = (0..=self.below(2)).map(|_| self.range()).collect();
            name.push_str(&format!("[{}]", ranges.join(",")));
        }
        name
    }

    fn range(&mut self) -> String {
        let (low, more, width) = (self.below(200), self.below(15), self.below(5) as usize);
        if more == 0 { format!("{low:0width$}") } else { format!("{low:0width$}-{:0width$}", low + more) }
    }
}

#[test]
fn lists_of_nodes_are_expanded_as_scontrol_does() {
    let Some(cluster) = Cluster::shared() else { return };
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    for _ in 0..200 {
        let list = chance.hostlist();
        let theirs = cluster.slurm(&["scontrol", "show", "hostnames", &list]).expect_code(0).stdout.clone();
        let ours = pf_launcher::hostlist::expand(&list).expect("it is a list");
        assert_eq!(ours, theirs.lines().collect::<Vec<_>>(), "{list}");
    }
}

/// Two programs at once in one job, on the same two nodes and on their halves of the cores, each with all ranks placed and bound; then one that fails.
#[test]
fn programs_side_by_side_under_srun() {
    let Some(cluster) = Cluster::alone() else { return };
    let cpus = allowed_cpus();
    if cpus.len() < 2 {
        println!("SKIPPED: one CPU only, disjoint cores cannot be had");
        return;
    }
    let salloc = [
        "salloc",
        "--no-shell",
        "-N2",
        "-w",
        "n1,n2",
        "--ntasks-per-node=4",
        "--cpus-per-task=2",
        "-J",
        "ranks",
        "-t",
        "5",
    ];
    let _ = cluster.slurm(&salloc).expect_code(0);
    let id = cluster.queue("ranks")[0].id.clone();
    let tools = tempfile::tempdir().expect("a folder");
    let (conf, job) = (format!("SLURM_CONF={}", cluster.conf().display()), format!("SLURM_JOB_ID={id}"));
    // What a batch script of this shape would have: it must not shape the steps.
    let prefix = ["env", &conf, &job, "SLURM_NTASKS=8", "SLURM_NTASKS_PER_NODE=4", "SLURM_CPUS_PER_TASK=2"];
    let script = "touch $HERE; n=0; until [ -e $OTHER ] || [ $n = 3000 ]; do sleep 0.01; n=$((n+1)); done
        echo \"rank $PF_RANK of $PF_RANKS on $SLURMD_NODENAME\"; grep Cpus_allowed_list /proc/self/status | sed 's/.*:/bound /'; [ $n -lt 3000 ]";
    let program = |name: &str, cpus: &[u32]| Program {
        name: name.into(),
        argv: ["sh", "-c", script].map(String::from).to_vec(),
        hosts: ["n1", "n2"].map(String::from).to_vec(),
        cpus: cpus.to_vec(),
        ranks: 2,
    };
    let (left, right) = cpus.split_at(cpus.len() / 2);
    let ran = run_programs("srun", tools.path(), &prefix, &[program("one", left), program("two", right)]);
    for (ran, half) in ran.iter().zip([left, right]) {
        assert_eq!(ran.code, 0, "{ran:?}");
        for line in ["rank 0 of 4 on n1", "rank 1 of 4 on n1", "rank 2 of 4 on n2", "rank 3 of 4 on n2"] {
            assert!(ran.stdout.contains(line), "{line}: {ran:?}");
        }
        let bound = ran.bound();
        assert!(bound.len() >= 4 && bound.iter().all(|cpu| half.contains(cpu)), "{bound:?} in {half:?}");
    }
    let fails = Program {
        argv: ["sh", "-c", "[ $PF_RANK = 3 ] || exit 0; sleep 0.5; exit 7"].map(String::from).to_vec(),
        ..program("fails", left)
    };
    assert_eq!(run_programs("srun", tools.path(), &prefix, &[fails])[0].code, 7);
    let _ = cluster.slurm(&["scancel", &id]).expect_code(0);
}

/// One srun holds all managers, and says how each of them ends: what a killed one ran is gone, and runs again without waiting for its lease.
#[test]
fn the_task_of_a_killed_manager_runs_again_at_once() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    let pids = site.path().join("pids");
    fs::create_dir(&pids).expect("a folder");
    // The first attempt does not heed SIGTERM and would run for ever; the second looks whether it still does.
    let script = "cd pids; trap : TERM; first=$(ls); echo $$ > $PF_ATTEMPT; if [ -z \"$first\" ]; then while :; do sleep 1; done; fi; \
        if kill -0 $(cat $first) 2>/dev/null; then echo still there; else echo it is gone; fi";
    let line = format!("exec '{}' run -- sh -c '{script}'", pf_binary().display());
    let began = Instant::now();
    let id = cluster.sbatch(&site, &["-N2", "-t", "5"], &line);
    let task: i32 = wait_for("the task to begin", || {
        let file = fs::read_dir(&pids).ok()?.next()?.ok()?.path();
        fs::read_to_string(file).ok()?.trim().parse().ok()
    });
    let stat = fs::read_to_string(format!("/proc/{task}/stat")).expect("the task runs");
    let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
    kill_hard(parent.expect("its parent is the manager"));
    let output = || fs::read_to_string(site.path().join("out")).unwrap_or_default();
    assert_eq!(cluster.end_of(&id).0, "COMPLETED", "{}", output());
    assert!(output().contains("it is gone"), "{}", output());
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
}

/// One srun holds all managers. When a node of four is lost, those of the others go on, and so does the job.
#[test]
fn the_loss_of_a_node_leaves_the_others_at_work() {
    let Some(cluster) = Cluster::alone() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    let script = notes.script("sleep 0.3");
    let line = format!("exec '{}' run --array 1-2000 -- sh -c '{script}'", pf_binary().display());
    let id = cluster.sbatch(&site, &["-N4", "--exclusive", "--no-kill", "-t", "5"], &line);
    let nodes = ["n1", "n2", "n3", "n4"].map(String::from);
    wait_for("tasks on all nodes", || (notes.nodes() == nodes.clone().into()).then_some(()));
    cluster.control(&["node-kill", "n3"]);
    let before = notes.done().len();
    // Far more than could have been at the end of their way when the node was lost.
    wait_for("the others to go on", || (notes.done().len() > before + 60).then_some(()));
    assert_eq!(
        cluster.job_field(&id, "JobState").as_deref(),
        Some("RUNNING"),
        "{}",
        fs::read_to_string(site.path().join("out")).unwrap_or_default()
    );
    let _ = cluster.slurm(&["scancel", &id]).expect_code(0);
    let _ = cluster.end_of(&id);
    cluster.control(&["node-start", "n3"]);
}
