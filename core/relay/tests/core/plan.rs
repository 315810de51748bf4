//! The plan over random snapshots: what must hold of every one; and the rules one by one.

use pf_protocol::resources::{NodeCapacity, Resources};
use pf_protocol::{BlockId, JobId};
use pf_relay_core::plan::{
    Ask, BlockView, Brake, Demand, NODE_PARTS, Plan, ShapeBook, Snapshot, Standing, plan,
};
use pf_relay_core::{Accounts, Scaling, Shape};
use proptest::prelude::*;
use std::collections::BTreeMap;

const HOUR: u64 = 3_600_000;

/// A snapshot that owns what it is made of.
#[derive(Debug, Clone, Default)]
struct World {
    scaling: Scaling,
    books: BTreeMap<String, ShapeBook>,
    now_ms: u64,
    barred: Option<String>,
    blocks_ever: u64,
    used_node_ms: u64,
    demands: Vec<Demand>,
    blocks: Vec<BlockView>,
}

impl World {
    fn plan(&self) -> Plan {
        plan(&Snapshot {
            scaling: &self.scaling,
            books: &self.books,
            now_ms: self.now_ms,
            barred: self.barred.clone(),
            blocks_ever: self.blocks_ever,
            used_node_ms: self.used_node_ms,
            demands: self.demands.clone(),
            blocks: self.blocks.clone(),
        })
    }

    /// What the relay does with a plan, without any time passing.
    fn apply(&mut self, plan: &Plan) {
        for ask in &plan.submit {
            self.blocks_ever += 1;
            let mut block = queued(1_000 + self.blocks_ever, ask);
            block.intended_node_ms = u64::from(ask.nodes) * ask.walltime_ms;
            if let Some(job) = ask.job {
                for brake in self.demands.iter_mut().filter_map(|d| d.brake.as_mut()) {
                    if brake.job == job {
                        brake.left_node_ms -= block.intended_node_ms;
                    }
                }
            }
            self.blocks.push(block);
        }
        for (id, _) in plan.give_back.iter().chain(&plan.cancel) {
            for block in self.blocks.iter_mut().filter(|b| b.block == *id) {
                block.standing = Standing::Leaving;
            }
        }
        for block in &mut self.blocks {
            let (idle, few) = (plan.idle.contains(&block.block), plan.few.contains(&block.block));
            block.idle_for_ms *= u64::from(idle);
            block.few_for_ms *= u64::from(few);
            block.tail = plan.tail.contains(&block.block) || (block.tail && idle);
        }
    }

    fn live(&self) -> usize {
        self.blocks.len()
    }
}

fn queued(id: u64, ask: &Ask) -> BlockView {
    BlockView {
        block: BlockId(id),
        shape: ask.shape.clone(),
        account: ask.account.clone(),
        nodes: ask.nodes,
        left_ms: Some(ask.walltime_ms),
        ahead: ask.ahead,
        ..BlockView::default()
    }
}

fn node(cores: u32) -> NodeCapacity {
    NodeCapacity { cores, ..NodeCapacity::default() }
}

fn shape(name: &str, max: u32, nodes: u32, hours: u64) -> Shape {
    Shape {
        name: name.into(),
        max_blocks: max,
        nodes,
        walltime_ms: hours * HOUR,
        node: Some(node(10)),
        ..Shape::default()
    }
}

fn world(shapes: Vec<Shape>, waiting: u64) -> World {
    let scaling = Scaling { max_blocks: 100, shapes, ..Scaling::default() };
    let books =
        scaling.shapes.iter().map(|s| (s.name.clone(), ShapeBook { proven: true, ..ShapeBook::default() }));
    World {
        books: books.collect(),
        demands: vec![demand(waiting)],
        now_ms: 1_000_000,
        scaling,
        ..World::default()
    }
}

fn demand(waiting: u64) -> Demand {
    Demand { waiting, ..Demand::default() }
}

fn shapes_of(plan: &Plan) -> Vec<&str> {
    plan.submit.iter().map(|a| a.shape.as_str()).collect()
}

fn running(id: u64, name: &str, nodes: u32, busy: u32) -> BlockView {
    BlockView {
        block: BlockId(id),
        shape: name.into(),
        standing: Standing::Running,
        came_up: true,
        nodes,
        left_ms: Some(HOUR),
        free_parts: u64::from(nodes - busy) * NODE_PARTS,
        busy_nodes: busy,
        ..BlockView::default()
    }
}

#[test]
fn the_small_shape_first_then_the_large_one() {
    let w = world(vec![shape("debug", 1, 2, 1), shape("large", 4, 8, 12)], 150);
    // 20 fit into the debug block, 80 into each large one.
    assert_eq!(shapes_of(&w.plan()), ["debug", "large", "large"]);
    let mut few = w.clone();
    few.demands = vec![demand(12)];
    assert_eq!(shapes_of(&few.plan()), ["debug"]);
    let mut long = w;
    long.demands[0].time_needed_ms = 2 * HOUR;
    let plan = long.plan();
    assert_eq!(shapes_of(&plan), ["large", "large"]);
    assert!(plan.shapes[0].1.contains("too short"), "{:?}", plan.shapes);
}

#[test]
fn a_task_that_needs_all_of_the_walltime_never_gets_a_block() {
    let mut w = world(vec![shape("a", 4, 1, 1)], 5);
    w.demands[0].time_needed_ms = HOUR;
    assert!(w.plan().submit.is_empty());
    w.demands[0].time_needed_ms = HOUR - 60_000;
    assert_eq!(w.plan().submit.len(), 1);
    // A short block keeps a quarter.
    let mut short = w.clone();
    short.scaling.shapes[0].walltime_ms = 60_000;
    for (needed_s, blocks) in [(45, 1), (46, 0)] {
        short.demands[0].time_needed_ms = needed_s * 1_000;
        let plan = short.plan();
        assert_eq!(plan.submit.len(), blocks, "{needed_s} s: {:?}", plan.shapes);
    }
    assert!(short.plan().shapes[0].1.contains("walltime of 60 s is too short for tasks that need 46 s"));
    // And when blocks were seen to need ten minutes to come up, that is learned.
    w.books.get_mut("a").unwrap().start_ms = 600_000;
    assert!(w.plan().submit.is_empty());
}

#[test]
fn parallelism_is_the_part_that_is_asked_for_at_once() {
    let mut w = world(vec![shape("a", 100, 1, 1)], 200);
    for (milli, blocks) in [(1_000, 20), (500, 10), (10, 1), (0, 1)] {
        w.scaling.parallelism_milli = milli;
        assert_eq!(w.plan().submit.len(), blocks, "{milli}");
    }
    // Half of all is placed already: nothing more.
    w.scaling.parallelism_milli = 500;
    w.demands[0].placed = 200;
    assert!(w.plan().submit.is_empty());
}

#[test]
fn work_of_one_account_never_runs_on_hours_of_another() {
    let mut a = shape("a", 10, 1, 1);
    a.accounts = Accounts::Only(vec!["p1".into(), "p2".into()]);
    let mut w = world(vec![a], 0);
    let on =
        |account: Option<&str>, waiting| Demand { account: account.map(str::to_owned), ..demand(waiting) };
    w.demands = vec![on(Some("p2"), 5), on(None, 4), on(Some("p1"), 5), on(Some("other"), 9)];
    let plan = w.plan();
    let accounts: Vec<_> = plan.submit.iter().map(|a| a.account.as_deref().unwrap()).collect();
    assert_eq!(accounts, ["p2", "p1"], "those without a name go with the first account");
    assert!(plan.shapes[0].1.contains("account other"), "{:?}", plan.shapes);
    w.blocks = vec![BlockView { account: Some("p1".into()), ..running(1, "a", 1, 0) }];
    w.demands = vec![Demand { room: [(BlockId(1), 10)].into(), ..on(Some("p2"), 5) }];
    assert_eq!(w.plan().submit.len(), 1, "the block of p1 is of no use to p2");
}

#[test]
fn node_hours_are_a_hard_brake() {
    let mut w = world(vec![shape("a", 100, 2, 10)], 1_000);
    w.scaling.node_ms_max = Some(50 * HOUR);
    let plan = w.plan();
    // Two blocks of 20 node-hours, and one that is shortened to 5 hours on 2 nodes.
    let walltimes: Vec<u64> = plan.submit.iter().map(|a| a.walltime_ms / HOUR).collect();
    assert_eq!(walltimes, [10, 10, 5]);
    assert!(plan.shapes[0].1.contains("50.00 node-hours of the endpoint"), "{:?}", plan.shapes);
    w.used_node_ms = 50 * HOUR;
    assert!(w.plan().submit.is_empty());
    w.scaling.node_ms_max = None;
    w.demands[0].brake = Some(Brake { job: JobId(7), left_node_ms: 21 * HOUR });
    let plan = w.plan();
    assert_eq!(
        plan.submit.iter().map(|a| (a.walltime_ms / 60_000, a.job)).collect::<Vec<_>>(),
        [(600, Some(JobId(7))), (30, Some(JobId(7)))]
    );
}

#[test]
fn blocks_without_need_go_and_the_youngest_leaves_the_queue_first() {
    let mut w = world(vec![shape("a", 10, 1, 1)], 10);
    let ask = Ask { shape: "a".into(), nodes: 1, walltime_ms: HOUR, ..Ask::default() };
    w.blocks = (1..=3).map(|id| queued(id, &ask)).collect();
    let plan = w.plan();
    assert_eq!(plan.idle.iter().map(|b| b.0).collect::<Vec<_>>(), [2, 3]);
    assert!(plan.is_empty(), "not at once");
    w.blocks.iter_mut().for_each(|b| b.idle_for_ms = w.scaling.idle_ms);
    let mut w = World { scaling: Scaling { min_blocks: 2, ..w.scaling.clone() }, ..w };
    assert_eq!(w.plan().cancel.iter().map(|c| c.0.0).collect::<Vec<_>>(), [3]);
    w.scaling.min_blocks = 0;
    w.demands.clear();
    assert_eq!(w.plan().cancel.iter().map(|c| c.0.0).collect::<Vec<_>>(), [3, 2, 1]);
    w.blocks.iter_mut().for_each(|b| b.ahead = true);
    assert!(w.plan().cancel.is_empty(), "what was asked for ahead of demand may wait in the queue");
}

#[test]
fn a_large_block_with_one_task_is_in_its_tail() {
    let mut w = world(vec![shape("a", 10, 100, 1)], 0);
    w.blocks = vec![running(1, "a", 100, 1)];
    let plan = w.plan();
    assert!(plan.few.contains(&BlockId(1)) && plan.tail.is_empty());
    w.blocks[0].few_for_ms = w.scaling.idle_ms;
    let plan = w.plan();
    assert!(plan.tail.contains(&BlockId(1)) && plan.is_empty(), "its task is not killed");
    w.apply(&plan);
    // Waiting work that nothing else can take makes it a normal block again.
    w.demands = vec![Demand { room: [(BlockId(1), 990)].into(), ..demand(5) }];
    let plan = w.plan();
    assert!(plan.tail.is_empty() && plan.submit.is_empty());
    // If another block can, it stays in its tail; and goes with its last task, at once.
    w.blocks.push(running(2, "a", 100, 50));
    w.demands = vec![Demand { room: [(BlockId(1), 990), (BlockId(2), 500)].into(), ..demand(5) }];
    assert!(w.plan().tail.contains(&BlockId(1)));
    (w.blocks[0].busy_nodes, w.blocks[0].free_parts) = (0, 100 * NODE_PARTS);
    assert_eq!(w.plan().give_back[0].0, BlockId(1));
}

#[test]
fn failures_hold_back_one_shape_and_not_the_other() {
    let mut w = world(vec![shape("debug", 5, 1, 1), shape("large", 5, 1, 1)], 30);
    let book = w.books.get_mut("debug").unwrap();
    (book.failures, book.not_before_ms) = (2, 2_000_000);
    let plan = w.plan();
    assert_eq!(shapes_of(&plan), ["large", "large", "large"]);
    assert!(plan.shapes[0].1.contains("waits 1000 s more"), "{:?}", plan.shapes);
    w.now_ms = 2_000_000;
    assert_eq!(shapes_of(&w.plan()), ["debug", "large", "large"], "one at a time shows whether it is mended");
}

#[test]
fn without_any_proof_no_more_are_tried_than_may_fail() {
    let mut w = world(vec![shape("a", 100, 1, 1)], 1_000);
    w.books.clear();
    assert_eq!(w.plan().submit.len(), 10);
    w.books.insert("a".into(), ShapeBook { proven: true, ..ShapeBook::default() });
    assert_eq!(w.plan().submit.len(), 100);
}

prop_compose! {
    fn any_shape()(n in 0usize..3, max in 0u32..6, nodes in 1u32..9, hours in 1u64..30, accounts in 0u8..4, known in any::<bool>(), cores in 1u32..20) -> (usize, Shape) {
        let accounts = match accounts {
            0 => Accounts::Unused,
            1 => Accounts::Any(Some("p0".into())),
            2 => Accounts::Only(vec!["p1".into(), "p2".into()]),
            _ => Accounts::Any(None),
        };
        let node = known.then(|| node(cores));
        (n, Shape { name: format!("s{n}"), max_blocks: max, nodes, walltime_ms: hours * HOUR, accounts, node })
    }
}

fn any_account() -> impl Strategy<Value = Option<String>> {
    (0u8..5).prop_map(|n| (n > 0).then(|| format!("p{}", n - 1)))
}

prop_compose! {
    fn any_demand()(cores in 1u32..25, account in any_account(), hours in 0u64..20, waiting in 0u64..200, placed in 0u64..50, room in proptest::collection::btree_map(1u64..8, 0u64..30, 0..5), brake in proptest::option::of(0u64..100)) -> Demand {
        Demand {
            resources: Resources { cores, ..Resources::default() },
            account,
            time_needed_ms: hours * HOUR / 2,
            waiting,
            placed,
            room: room.into_iter().map(|(b, n)| (BlockId(b), n)).collect(),
            brake: brake.map(|left| Brake { job: JobId(left), left_node_ms: left * HOUR }),
        }
    }
}

prop_compose! {
    fn any_block()(shape in 0usize..4, account in any_account(), standing in 0u8..3, came_up in any::<bool>(), nodes in 1u32..9, left in proptest::option::of(0u64..30), absent in 0u32..3, busy in 0u32..9, times in (0u64..300_000, 0u64..300_000), flags in (any::<bool>(), any::<bool>())) -> BlockView {
        let busy_nodes = if standing == 1 { busy.min(nodes) } else { 0 };
        BlockView {
            shape: format!("s{shape}"),
            account,
            standing: [Standing::Queued, Standing::Running, Standing::Leaving][usize::from(standing)],
            came_up: came_up || busy_nodes > 0,
            nodes,
            left_ms: left.map(|h| h * HOUR),
            absent_nodes: absent.min(nodes - busy_nodes),
            free_parts: u64::from(nodes - busy_nodes) * NODE_PARTS / 2,
            busy_nodes,
            idle_for_ms: times.0,
            few_for_ms: times.1,
            tail: flags.0 && standing == 1,
            ahead: flags.1,
            intended_node_ms: u64::from(nodes) * 20 * HOUR,
            ..BlockView::default()
        }
    }
}

prop_compose! {
    fn any_world()(
        shapes in proptest::collection::vec(any_shape(), 1..4),
        books in proptest::collection::btree_map(0usize..4, (0u32..4, 0u64..2_000_000, any::<bool>(), any::<bool>()), 0..4),
        numbers in (0u32..4, 0u32..3, 0u32..9, 0u32..1_001),
        limit in proptest::option::of(0u64..2_000),
        used in 0u64..500,
        demands in proptest::collection::vec(any_demand(), 0..6),
        blocks in proptest::collection::vec(any_block(), 0..8),
        ever in 0u64..4,
        barred in proptest::option::weighted(0.1, Just("paused".to_string())),
    ) -> World {
        let mut by_name: BTreeMap<usize, Shape> = BTreeMap::new();
        by_name.extend(shapes);
        let scaling = Scaling {
            init_blocks: numbers.0,
            min_blocks: numbers.1,
            max_blocks: numbers.2,
            parallelism_milli: numbers.3,
            node_ms_max: limit.map(|h| h * HOUR),
            shapes: by_name.into_values().collect(),
            ..Scaling::default()
        };
        let books = books.into_iter().map(|(n, (failures, not_before_ms, stopped, proven))| {
            let stopped = (stopped && failures > 2).then(|| "stopped".to_string());
            (format!("s{n}"), ShapeBook { failures, not_before_ms, stopped, proven, ..ShapeBook::default() })
        });
        let mut ids = BTreeMap::new();
        for (n, demand) in demands.into_iter().enumerate() {
            // A job is one demand.
            let demand = Demand { brake: demand.brake.map(|b| Brake { job: JobId(n as u64), ..b }), ..demand };
            ids.insert(n, demand);
        }
        let blocks = blocks.into_iter().zip(1..).map(|(b, id)| BlockView { block: BlockId(id), ..b });
        let blocks: Vec<BlockView> = blocks.collect();
        World {
            scaling,
            books: books.collect(),
            now_ms: 1_000_000,
            barred,
            // Whatever is there was asked for once.
            blocks_ever: ever.max(blocks.len() as u64),
            used_node_ms: used * HOUR,
            demands: ids.into_values().collect(),
            blocks,
        }
    }
}

/// Whether somebody may be the reason of this ask.
fn has_reason(w: &World, ask: &Ask) -> bool {
    let Some(shape) = w.scaling.shape(&ask.shape) else { return false };
    let pays = |d: &Demand| shape.accounts.charged(d.account.as_deref()) == Some(ask.account.as_deref());
    let fits = |d: &Demand| shape.node.as_ref().is_none_or(|n| d.resources.why_not_on(n).is_none());
    let lasts = |d: &Demand| ask.walltime_ms >= d.time_needed_ms;
    w.demands.iter().any(|d| d.waiting > 0 && pays(d) && fits(d) && lasts(d))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_snapshot(w in any_world()) {
        let plan = w.plan();
        prop_assert_eq!(&plan, &w.plan(), "equal snapshots give equal plans");
        let mut after = w.clone();
        after.apply(&plan);
        // Never above a maximum by what is asked for.
        if !plan.submit.is_empty() {
            prop_assert!(after.live() <= w.scaling.max_blocks as usize);
            let intended: u64 = after.blocks.iter().map(|b| b.intended_node_ms).sum();
            prop_assert!(w.scaling.node_ms_max.is_none_or(|most| w.used_node_ms + intended <= most));
        }
        for shape in &w.scaling.shapes {
            let asked = plan.submit.iter().filter(|a| a.shape == shape.name).count();
            let there = after.blocks.iter().filter(|b| b.shape == shape.name).count();
            prop_assert!(asked == 0 || there <= shape.max_blocks as usize);
            let book = w.books.get(&shape.name).cloned().unwrap_or_default();
            let may = book.stopped.is_none() && book.not_before_ms <= w.now_ms && w.barred.is_none();
            prop_assert!(asked == 0 || may, "{:?}", book);
            prop_assert!(book.failures == 0 || asked <= 1);
            let unproven = after.blocks.iter().filter(|b| b.shape == shape.name && !b.came_up).count();
            prop_assert!(asked == 0 || book.proven || unproven + book.failures as usize <= 10);
        }
        for ask in &plan.submit {
            prop_assert!(ask.nodes > 0 && ask.walltime_ms > 0 && !ask.why.is_empty());
            prop_assert!(ask.ahead || has_reason(&w, ask), "no block without work for it: {:?}", ask);
            let shape = w.scaling.shape(&ask.shape).unwrap();
            prop_assert!(ask.walltime_ms <= shape.walltime_ms && ask.nodes == shape.nodes);
            // Accounts: a block is charged to one that its shape may charge.
            prop_assert!(shape.accounts.charged(ask.account.as_deref()) == Some(ask.account.as_deref())
                || shape.accounts.charged(None) == Some(ask.account.as_deref()));
        }
        // For one job with a limit never more than it may use.
        for brake in w.demands.iter().filter_map(|d| d.brake) {
            let own = plan.submit.iter().filter(|a| a.job == Some(brake.job));
            prop_assert!(own.map(|a| u64::from(a.nodes) * a.walltime_ms).sum::<u64>() <= brake.left_node_ms);
        }
        // What ends is there, has no task, and was needed by nobody.
        for (id, why) in plan.give_back.iter().chain(&plan.cancel) {
            let block = w.blocks.iter().find(|b| b.block == *id).unwrap();
            prop_assert!(block.busy_nodes == 0 && block.standing != Standing::Leaving && !why.is_empty());
            prop_assert!(plan.idle.contains(id));
        }
        prop_assert!(plan.cancel.iter().all(|(id, _)| w.blocks.iter().any(|b| b.block == *id && b.standing == Standing::Queued)));
        let staying = after.blocks.iter().filter(|b| b.standing != Standing::Leaving).count();
        let ended = plan.give_back.len() + plan.cancel.len();
        prop_assert!(ended == 0 || staying >= w.scaling.min_blocks.min(w.scaling.max_blocks) as usize);
        // Nothing has changed: nothing is to be done.
        let again = after.plan();
        prop_assert!(again.is_empty(), "not idempotent: {:?} then {:?}", plan, again);
        prop_assert_eq!(plan.shapes.len(), w.scaling.shapes.len());
    }
}
