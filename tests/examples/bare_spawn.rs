//! What a process that does nothing but spawn `true` and wait reaches here, with one thread a CPU: what `scripts/bench spawn` compares with.
//! `bare_spawn N` prints one JSON line.

use std::process::Command;
use std::time::Instant;

fn main() {
    let n: usize = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(1_000);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let share = n / threads + usize::from(thread < n % threads);
            scope.spawn(move || {
                for _ in 0..share {
                    let status = Command::new("true").status();
                    assert!(status.is_ok_and(|s| s.success()), "true can be run");
                }
            });
        }
    });
    let rate = n as f64 / began.elapsed().as_secs_f64();
    println!(
        "{{\"metric\":\"spawn_bare\",\"value\":{rate:.1},\"unit\":\"processes/s\",\"n\":1,\"min\":{rate:.1},\"max\":{rate:.1}}}"
    );
}
