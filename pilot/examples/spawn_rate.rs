//! How fast a manager runs `true`, beside a bare loop that does nothing but spawn it, in one run. JSON lines.
//!
//! `cargo run --release -p pf-pilot --example spawn_rate [TASKS] [ROUNDS]`. Rounds of both alternate; the ratio is of the best of each.

#[expect(dead_code, reason = "the rig of the tests has more than is needed here")]
#[path = "../tests/rig/mod.rs"]
mod rig;

use pf_protocol::job::{Body, Command, JobSpec};
use pf_protocol::message::Message;
use std::process::{ExitCode, Stdio};
use std::time::Instant;

fn main() -> ExitCode {
    rig::be_manager_if_asked();
    let mut numbers = std::env::args().skip(1).map(|arg| arg.parse::<usize>());
    let (Ok(tasks), Ok(rounds)) = (numbers.next().unwrap_or(Ok(1_000)), numbers.next().unwrap_or(Ok(3)))
    else {
        eprintln!("spawn_rate: two numbers are wanted: tasks and rounds");
        return ExitCode::FAILURE;
    };
    let slots = std::thread::available_parallelism().map_or(1, usize::from);
    let mut rig = rig::Rig::start(slots as u32, "python3", &[]);
    let argv = vec!["/bin/true".to_string()];
    let body = Body::Command(Command { argv, ..Command::default() });
    rig.define(1, JobSpec { body, ..JobSpec::default() }, None);
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..rounds.max(1) {
        bare.push(bare_rate(tasks, slots));
        ours.push(manager_rate(&mut rig, tasks));
    }
    report("spawn_bare", "1/s", &bare);
    report("spawn_manager", "1/s", &ours);
    let best = |rates: &[f64]| rates.iter().copied().fold(0.0, f64::max);
    report("spawn_ratio", "1", &[best(&ours) / best(&bare)]);
    ExitCode::SUCCESS
}

/// Threads that spawn and wait, one for each slot.
fn bare_rate(tasks: usize, threads: usize) -> f64 {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..tasks / threads {
                    let mut command = std::process::Command::new("/bin/true");
                    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                    if let Err(error) = command.status() {
                        eprintln!("spawn_rate: /bin/true: {error}");
                    }
                }
            });
        }
    });
    tasks as f64 / begin.elapsed().as_secs_f64()
}

/// All tasks given at once, until the last outcome is there.
fn manager_rate(rig: &mut rig::Rig, tasks: usize) -> f64 {
    let items = vec![&b""[..]; tasks];
    rig.log.clear();
    let begin = Instant::now();
    rig.dispatch(1, &items);
    let mut ended = 0;
    while ended < tasks {
        ended += rig.wait_for("outcomes", |m| match m {
            Message::Outcomes(o) => Some(o.batches.iter().map(|b| b.outcomes.len()).sum::<usize>()),
            _ => None,
        });
        rig.log.clear();
    }
    tasks as f64 / begin.elapsed().as_secs_f64()
}

fn report(metric: &str, unit: &str, values: &[f64]) {
    let (min, max) = values.iter().fold((f64::MAX, 0f64), |(low, high), v| (low.min(*v), high.max(*v)));
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    println!(
        "{{\"metric\":\"{metric}\",\"value\":{mean:.3},\"unit\":\"{unit}\",\"n\":{},\"min\":{min:.3},\"max\":{max:.3}}}",
        values.len()
    );
}
