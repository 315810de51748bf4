//! The real cores under faults, from seeds. A seed that fails is kept here as a test of its own.

use pf_relay_core::{Accounts, Shape};
use pf_tests::sim::{Faults, Plan, Scheduler, World};

const S: u64 = 1_000_000;
const HOUR: u64 = 3_600 * S;

/// So many seeds; `PF_SIM_SEEDS` times as many for a soak.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let times = std::env::var("PF_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    0..count * times
}

fn run(plan: Plan) -> World {
    let mut world = World::new(plan);
    world.run(24 * HOUR);
    world
}

#[test]
fn without_faults_each_task_runs_once() {
    let world = run(Plan::default());
    assert!(world.truth.starts.values().all(|n| *n == 1), "{:?}", world.truth.starts);
    assert_eq!(world.jobs().len(), 3);
}

#[test]
fn the_same_seed_gives_the_same_log() {
    let faults =
        Faults { until: 60 * S, lose_ppm: 20_000, broker_kills: 1, relay_kills: 1, ..Faults::default() };
    let plan = Plan { seed: 5, faults, ..Plan::default() };
    assert_eq!(run(plan.clone()).log_hash(), run(plan.clone()).log_hash());
    assert_ne!(run(plan.clone()).log_hash(), run(Plan { seed: 6, ..plan }).log_hash());
}

#[test]
fn lost_and_repeated_frames_lose_no_task_and_run_none_twice() {
    for seed in seeds(10) {
        let faults = Faults { until: 120 * S, lose_ppm: 30_000, repeat_ppm: 30_000, ..Faults::default() };
        let world = run(Plan { seed, faults, ..Plan::default() });
        let twice: Vec<_> = world.truth.starts.iter().filter(|s| *s.1 > 1).collect();
        assert!(
            twice.is_empty(),
            "seed {seed}: no process died, yet these ran again: {twice:?}{}",
            world.decisions()
        );
    }
}

#[test]
fn a_killed_broker_or_relay_runs_nothing_twice() {
    for seed in seeds(10) {
        let faults = Faults { until: 100 * S, broker_kills: 2, relay_kills: 2, ..Faults::default() };
        let world = run(Plan { seed, faults, ..Plan::default() });
        let twice: Vec<_> = world.truth.starts.iter().filter(|s| *s.1 > 1).collect();
        assert!(
            twice.is_empty(),
            "seed {seed}: no manager died, yet these ran again: {twice:?}{}",
            world.decisions()
        );
    }
}

#[test]
fn everything_at_once() {
    let mut struck = [0; 5];
    for seed in seeds(20) {
        let faults = Faults {
            until: 200 * S,
            lose_ppm: 10_000,
            repeat_ppm: 10_000,
            broker_kills: 2,
            relay_kills: 2,
            node_kills: 2,
            partitions: 2,
        };
        let world = run(Plan { seed, faults, ..Plan::default() });
        struck.iter_mut().zip(world.struck).for_each(|(sum, n)| *sum += n);
    }
    assert!(struck.iter().all(|n| *n >= 10), "the faults did not strike: {struck:?}");
}

#[test]
fn large_payloads_arrive_whole_and_their_files_go() {
    let world = run(Plan { has_large: true, jobs: 4, tasks: 40, ..Plan::default() });
    assert!(world.truth.starts.values().all(|n| *n == 1), "{:?}", world.truth.starts);
    assert!(world.large_values() > 0, "no value was large");
}

#[test]
fn large_payloads_survive_lost_frames_and_dead_relays_brokers_and_managers() {
    let mut struck = [0; 5];
    for seed in seeds(8) {
        let faults = Faults {
            until: 100 * S,
            lose_ppm: 5_000,
            repeat_ppm: 5_000,
            broker_kills: 2,
            relay_kills: 2,
            node_kills: 2,
            partitions: 1,
        };
        let plan = Plan {
            seed,
            has_large: true,
            jobs: 4,
            tasks: 30,
            failing_ppm: 100_000,
            faults,
            ..Plan::default()
        };
        let world = run(plan);
        assert!(world.large_values() > 0, "seed {seed}: no value was large");
        struck.iter_mut().zip(world.struck).for_each(|(sum, n)| *sum += n);
    }
    assert!(struck.iter().all(|n| *n >= 4), "the faults did not strike: {struck:?}");
}

#[test]
fn blocks_end_at_their_walltime_and_work_goes_on() {
    for seed in seeds(5) {
        let plan = Plan { seed, walltime_ms: 60_000, tasks: 400, ..Plan::default() };
        let world = run(plan);
        assert!(world.now > 90 * S, "one block was enough");
    }
}

#[test]
fn a_set_up_that_is_broken_for_good_makes_ten_submits_in_a_day() {
    for seed in seeds(3) {
        let scheduler = Scheduler { broken: true, ..Scheduler::default() };
        // The relay is killed again and again: what it counted is in its roster.
        let faults = Faults { until: 20 * HOUR, relay_kills: 30, ..Faults::default() };
        let plan =
            Plan { seed, blocks: 50, tasks: 500, scheduler, faults, check_always: false, ..Plan::default() };
        let mut world = World::new(plan);
        world.run_for(24 * HOUR);
        let count = world.submits.len();
        assert!((1..=10).contains(&count), "seed {seed}: {count} submits{}", world.decisions());
        let paused = world.report().and_then(|r| r.paused).expect("the endpoint pauses itself");
        assert!(paused.contains("exit code 127"), "{paused}");
        assert!(world.struck[3] >= 20, "the relay was killed {} times", world.struck[3]);
    }
}

#[test]
fn a_busy_scheduler_with_limits_preemption_shapes_and_accounts() {
    let shape = |name: &str, max_blocks, nodes, walltime_ms| Shape {
        name: name.into(),
        max_blocks,
        nodes,
        walltime_ms,
        accounts: Accounts::Only(vec!["a".into(), "b".into()]),
        ..Shape::default()
    };
    let (mut later, mut preempted) = (0, 0);
    for seed in seeds(5) {
        let scheduler = Scheduler {
            wait: (10 * S, 600 * S),
            jobs_max: Some(3),
            preempt_ppm: 300_000,
            ..Scheduler::default()
        };
        let plan = Plan {
            seed,
            jobs: 4,
            tasks: 400,
            task_ms_max: 20_000,
            blocks: 6,
            shapes: vec![shape("debug", 1, 1, 300_000), shape("large", 5, 4, 1_200_000)],
            accounts: vec!["a", "b"],
            scheduler,
            faults: Faults { until: 300 * S, relay_kills: 1, ..Faults::default() },
            ..Plan::default()
        };
        let world = run(plan);
        let of =
            |what: &str| world.submits.iter().filter(|s| s.1 == what || s.2.as_deref() == Some(what)).count();
        assert!(["debug", "large", "a", "b"].iter().all(|w| of(w) > 0), "{:?}", world.submits);
        let report = world.report().expect("a relay");
        assert_eq!((report.paused, report.shapes.iter().map(|s| s.failures).sum::<u32>()), (None, 0));
        later += world.later;
        preempted += usize::from(world.decisions().contains("preempted"));
    }
    assert!(later > 0 && preempted > 0, "{later} submits had to wait, {preempted} runs saw preemption");
}

#[test]
fn a_thousand_nodes_and_a_hundred_thousand_tasks_under_faults() {
    let faults = Faults {
        until: 60 * S,
        lose_ppm: 1_000,
        repeat_ppm: 1_000,
        broker_kills: 1,
        relay_kills: 1,
        node_kills: 10,
        partitions: 5,
    };
    let plan = Plan {
        seed: 42,
        jobs: 10,
        tasks: 10_000,
        blocks: 10,
        nodes: 100,
        cores: 8,
        task_ms_max: 10_000,
        faults,
        check_always: false,
        ..Plan::default()
    };
    let world = run(plan);
    assert_eq!(world.truth.told.len(), 100_000);
}
