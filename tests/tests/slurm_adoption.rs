//! A relay dies and another takes its blocks over on a real Slurm: those that run, that still wait, and that ended meanwhile; on this login node or on another.

use pf_tests::notes::Notes;
use pf_tests::site::{Ran, Site, kill_hard, pf_binary, wait_for};
use pf_tests::slurm::{Cluster, calls, hang};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Waits for `go.LABEL`, or for `go`.
fn waiting(site: &Site) -> String {
    let go = site.path().join("go");
    format!("while ! test -e {go}.$PF_INDEX && ! test -e {go}; do sleep 0.05; done", go = go.display())
}

fn let_go(site: &Site, labels: &BTreeSet<u32>) {
    labels.iter().for_each(|l| fs::write(site.path().join(format!("go.{l}")), "").unwrap_or_default());
}

/// No name was submitted twice: what sbatch was told, and what Slurm remembers beside what it remembered `before`.
fn check_submits(cluster: &Cluster, site: &Site, endpoint: &str, before: usize) -> usize {
    let told: Vec<String> = calls(site, "sbatch").into_iter().map(|(_, args)| args).collect();
    let distinct: BTreeSet<&String> = told.iter().collect();
    assert_eq!(distinct.len(), told.len(), "one block was submitted twice: {told:#?}");
    assert_eq!(cluster.ever(&format!("pf-{endpoint}-")).len(), before + told.len(), "{told:#?}");
    told.len()
}

#[test]
fn a_killed_relay_finds_blocks_that_run_wait_and_ended() {
    let Some(cluster) = Cluster::alone() else { return };
    let (site, before) = (cluster.site(), cluster.ever("pf-adopt-").len());
    let notes = Notes::new(&site);
    // One node is taken: of four blocks of one node three run and one waits.
    let filler = cluster.sbatch(&site, &["-N1", "--exclusive", "-J", "filler", "-p", "batch"], "sleep 600");
    let settings = ["queue=batch", "exclusive=true", "blocks_max=4", "walltime=10m", "idle=3s"];
    cluster.endpoint(&site, "adopt", &settings);
    let script = notes.script(&waiting(&site));
    let submit = ["submit", "--quiet", "--endpoint", "adopt", "--array", "1-8", "--", "sh", "-c", &script];
    let job = site.pf(&submit).expect_code(0).stdout.trim().to_owned();
    wait_for("six tasks on three nodes", || (notes.began().len() == 6).then_some(()));
    let queue = wait_for("three blocks that run and one that waits", || {
        let queue = cluster.queue("pf-adopt-");
        let running = queue.iter().filter(|q| q.state == "RUNNING").count();
        (queue.len() == 4 && running == 3).then_some(queue)
    });
    let on: BTreeMap<String, BTreeSet<u32>> = notes.labels_by_node();
    assert_eq!(on.len(), 3, "{on:?}");
    let running: Vec<_> = queue.iter().filter(|q| q.state == "RUNNING").collect();
    let (spooled, lost, kept) = (running[0], running[1], running[2]);

    if let Some(relay) = site.broker_pid() {
        kill_hard(relay);
    }
    // One block ends with results that nobody took, one while its tasks run.
    let_go(&site, &on[&spooled.nodes]);
    wait_for("its tasks to end", || notes.done().is_superset(&on[&spooled.nodes]).then_some(()));
    // Also their processes: what is killed on its last instruction has not ended well.
    wait_for("them to be gone", || (!notes.alive(&on[&spooled.nodes])).then_some(()));
    let _ = cluster.slurm(&["scancel", &spooled.id, &lost.id]).expect_code(0);
    wait_for("the end of both", || (cluster.queue("pf-adopt-").len() == 2).then_some(()));

    site.pf(&["status"]).expect_code(0);
    wait_for("the end of both to be known", || {
        let explained = site.pf(&["endpoint", "explain", "adopt"]).expect_code(0).stdout;
        (explained.matches(" ended: ").count() == 2).then_some(())
    });
    let _ = cluster.slurm(&["scancel", &filler]).expect_code(0);
    fs::write(site.path().join("go"), "").expect("a mark");
    site.pf(&["wait", &job]).expect_code(0);
    notes.check_done_once(1..=8);
    let twice: BTreeSet<u32> = notes.runs().into_iter().filter(|(_, n)| *n > 1).map(|(l, _)| l).collect();
    assert!(twice.is_superset(&on[&lost.nodes]), "{twice:?}: what was killed runs again");
    // What a manager held and began after the relay's death was killed with its block as well; but nothing that had ended or went on.
    let safe: BTreeSet<u32> = on[&spooled.nodes].union(&on[&kept.nodes]).copied().collect();
    assert!(twice.is_disjoint(&safe), "{twice:?} ran again, of which {safe:?} had no reason to");
    check_submits(&cluster, &site, "adopt", before);
}

#[test]
fn work_goes_on_before_the_scheduler_has_answered_a_new_relay() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    cluster.endpoint(&site, "goes", &["queue=debug", "cores_per_node=2", "walltime=4m", "idle=1s"]);
    let script = notes.script(&waiting(&site));
    let submit = ["submit", "--quiet", "--endpoint", "goes", "--array", "1-3", "--", "sh", "-c", &script];
    let job = site.pf(&submit).expect_code(0).stdout.trim().to_owned();
    wait_for("two tasks to run", || (notes.began().len() == 2).then_some(()));
    let hanging = hang(&site, "squeue");
    kill_hard(site.broker_pid().expect("the daemon runs"));
    let _ = site.pf(&["status"]).expect_code(0);
    let_go(&site, &notes.began());
    wait_for("the third to run", || (notes.began().len() == 3).then_some(()));
    drop(hanging);
    let_go(&site, &[1, 2, 3].into());
    site.pf(&["wait", &job]).expect_code(0);
    notes.check_once(1..=3);
}

#[test]
fn a_relay_moves_to_another_login_node() {
    let Some(cluster) = Cluster::shared() else { return };
    let Some(address) = cluster.login_address() else {
        println!("SKIPPED: the nodes have no networks of their own here");
        return;
    };
    let (mut broker, site) = (Site::new(), cluster.site());
    let before = cluster.ever("pf-moves-").len();
    let notes = Notes::new(&site);
    let dial = broker.listen_for_relays(&address);
    cluster.endpoint(&site, "moves", &["queue=debug", "cores_per_node=2", "walltime=4m", "idle=2s"]);
    let key = site.pf(&["relay", "key", "moves"]).expect_code(0).stdout.trim().to_owned();
    broker.pf(&["endpoint", "add", "moves", "--relay-key", &key]).expect_code(0);
    let broker_key = broker.pf(&["broker", "key"]).expect_code(0).stdout.trim().to_owned();
    let run = ["relay", "run", "moves", "--broker", &dial, "--broker-key", &broker_key];

    let first = site.spawn(&run);
    let script = notes.script(&waiting(&site));
    let submit = ["submit", "--quiet", "--endpoint", "moves", "--array", "1-6", "--", "sh", "-c", &script];
    let job = broker.pf(&submit).expect_code(0).stdout.trim().to_owned();
    wait_for("two tasks to run", || (notes.began().len() == 2).then_some(()));
    kill_hard(first.pid());
    drop(first);
    let ticket = || {
        let blocks = site.path().join("root/shared/blocks/moves/b1/ticket.json");
        fs::read_to_string(blocks).unwrap_or_default()
    };
    assert!(ticket().contains(&format!("\"{address}:")), "{}", ticket());
    // What runs ends while nobody listens.
    let running = notes.began();
    let_go(&site, &running);
    wait_for("them to end", || (notes.done().len() == 2).then_some(()));

    let mut moved = site.program(pf_tests::repo_root().join("scripts/slurm-cluster"));
    moved.env("SLURM_CLUSTER_DIR", cluster.dir()).arg("login2").arg(pf_binary()).args(run);
    // Without this it would wait until the broker has not heard the first one for a while.
    moved.arg("--takeover");
    let second = pf_tests::site::Background::of(&mut moved);
    wait_for("the ticket to tell the new address", || {
        (!ticket().contains(&format!("\"{address}:"))).then_some(())
    });
    fs::write(site.path().join("go"), "").expect("a mark");
    broker.pf(&["wait", &job]).expect_code(0);
    notes.check_once(1..=6);
    assert_eq!(check_submits(&cluster, &site, "moves", before), 1);
    wait_for("the new relay to be told to stop", || {
        (broker.pf(&["endpoint", "stop", "moves"]).code == 0).then_some(())
    });
    wait_for("an empty queue", || cluster.queue("pf-moves-").is_empty().then_some(()));
    drop(second);
}

/// The programs that pilots and managers of this site run.
fn programs(site: &Site) -> BTreeSet<PathBuf> {
    let pids = [" pilot ", " manager "].into_iter().flat_map(|words| site.pids_of(words));
    let programs = pids.filter_map(|pid| fs::read_link(format!("/proc/{pid}/exe")).ok());
    // srun names the manager too.
    programs.filter(|p| p.file_name().is_some_and(|n| n == "pf")).collect()
}

#[test]
fn an_upgrade_leaves_running_blocks_their_version() {
    let Some(cluster) = Cluster::shared() else { return };
    let site = cluster.site();
    let notes = Notes::new(&site);
    cluster.endpoint(&site, "up", &["queue=debug", "cores_per_node=2", "walltime=4m", "idle=1s"]);
    let installed = site.path().join("installed");
    let install = |program: &[u8]| {
        let new = installed.with_extension("new");
        fs::write(&new, program).expect("a program");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("an executable program");
        fs::rename(&new, &installed).expect("the program in its place");
    };
    let pf =
        |args: &[&str]| Ran::of(site.program(&installed).args(args)).expect_code(0).stdout.trim().to_owned();
    let program = fs::read(pf_binary()).expect("the program");
    install(&program);
    let script = notes.script(&waiting(&site));
    let submit =
        |labels| pf(&["submit", "--quiet", "--endpoint", "up", "--array", labels, "--", "sh", "-c", &script]);
    let job = submit("1-2");
    wait_for("tasks to run", || (notes.began().len() == 2).then_some(()));
    let old = programs(&site);
    let bin = site.path().join("root/shared/blocks/up/bin");
    assert!(old.len() == 1 && old.iter().all(|p| p.starts_with(&bin)), "{old:?}");

    // Another version: an ELF file may have more behind its end.
    install(&[&program[..], b"2"].concat());
    if let Some(relay) = site.broker_pid() {
        kill_hard(relay);
    }
    let _ = pf(&["status"]);
    let more = submit("3-4");
    let_go(&site, &[1, 2].into());
    pf(&["wait", &job]);
    wait_for("the next tasks", || (notes.began().len() == 4).then_some(()));
    assert_eq!(programs(&site), old, "the block goes on with the version that it began with");
    let_go(&site, &[3, 4].into());
    pf(&["wait", &more]);
    notes.check_once(1..=4);
    wait_for("the block to be given back", || cluster.queue("pf-up-").is_empty().then_some(()));

    let last = submit("5");
    wait_for("a task in a new block", || notes.began().contains(&5).then_some(()));
    let new = programs(&site);
    assert!(new.len() == 1 && new.is_disjoint(&old), "{new:?}");
    let_go(&site, &[5].into());
    pf(&["wait", &last]);
    wait_for("the old copy to be deleted", || {
        (fs::read_dir(&bin).expect("the copies").count() == 1).then_some(())
    });
    assert!(new.iter().all(|p| p.exists()), "the new one stays");
}
