//! Many blocks of two endpoints through a real Slurm, and a relay that is killed in between: no task is lost, none runs twice, and squeue is asked once an
//! interval. `scripts/soak` runs it with hundreds of blocks.

use pf_tests::notes::Notes;
use pf_tests::site::{kill_hard, wait_for};
use pf_tests::slurm::{Cluster, calls, submit};
use std::time::{Duration, Instant};

/// How many blocks, if not a few.
const BLOCKS_VARIABLE: &str = "PF_SOAK_BLOCKS";
const BLOCKS: usize = 20;
const ENDPOINTS: [&str; 2] = ["soak-a", "soak-b"];
/// Blocks of an endpoint at once; each has one slot.
const AT_ONCE: u32 = 4;
/// The interval that the tests' endpoints have, less what a clock and a shell's start may lose.
const POLL_S: f64 = 0.9;
/// Between looks at Slurm's queue: each costs a process.
const LOOK: Duration = Duration::from_millis(100);

#[test]
fn blocks_come_and_go_and_no_task_is_lost_or_runs_twice() {
    let Some(cluster) = Cluster::alone() else { return };
    let wanted = std::env::var(BLOCKS_VARIABLE).ok().and_then(|n| n.parse().ok()).unwrap_or(BLOCKS);
    let site = cluster.site();
    let notes = Notes::new(&site);
    let began = Instant::now();
    let most = format!("blocks_max={AT_ONCE}");
    let settings = ["queue=debug", "cores_per_node=1", "cores=1", "walltime=4m", "idle=100ms", &most];
    ENDPOINTS.iter().for_each(|name| cluster.endpoint(&site, name, &settings));
    let script = notes.script("sleep 0.3");
    let (mut tasks, mut killed) = (0, false);
    while calls(&site, "sbatch").len() < wanted {
        let wave = ENDPOINTS.map(|endpoint| {
            let labels = format!("{}-{}", tasks + 1, tasks + AT_ONCE);
            tasks += AT_ONCE;
            submit(&site, &["--endpoint", endpoint, "--array", &labels, "--", "sh", "-c", &script])
        });
        if !killed && calls(&site, "sbatch").len() >= wanted / 2 {
            wait_for("tasks to run", || (notes.began().len() > notes.done().len()).then_some(()));
            kill_hard(site.broker_pid().expect("the daemon runs"));
            killed = true;
        }
        wave.iter().for_each(|job| drop(site.pf(&["wait", job]).expect_code(0)));
        wait_for("the blocks to be given back", || {
            std::thread::sleep(LOOK);
            cluster.queue("pf-soak-").is_empty().then_some(())
        });
    }
    notes.check_once(1..=tasks);
    let asked: Vec<f64> = calls(&site, "squeue").into_iter().map(|(at, _)| at).collect();
    let too_soon: Vec<f64> = asked.windows(2).map(|w| w[1] - w[0]).filter(|gap| *gap < POLL_S).collect();
    assert_eq!(too_soon, [0.0; 0], "seconds between two squeue");
    assert!(killed, "the relay was to be killed in between");
    println!(
        "soak: {} blocks, {tasks} tasks, each run once; {} squeue, at least {:.2} s apart; {:.0} s",
        calls(&site, "sbatch").len(),
        asked.len(),
        asked.windows(2).map(|w| w[1] - w[0]).fold(f64::INFINITY, f64::min),
        began.elapsed().as_secs_f64()
    );
}
