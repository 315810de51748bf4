//! Measures the store on a real disk: `cargo run --release -p pf-store --example store_bench [DIR]`.
//! Prints one JSON line a metric: {metric, value, unit, n, min, max}; value is the median of n runs.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use pf_store::{Class, Options, RecordType, Store, StoreError, SyncEvent};

const KIND: RecordType = RecordType { kind: 1, version: 1, critical: true };
const RECORDS: u64 = 1_000_000;
const BATCH: u64 = 1_000;
const COMMITS: usize = 500;
const RUNS: usize = 3;

type Failure = Box<dyn std::error::Error>;

fn report(metric: &str, unit: &str, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    let value = values.get(values.len() / 2).copied().unwrap_or(0.0);
    let min = values.first().copied().unwrap_or(0.0);
    let max = values.last().copied().unwrap_or(0.0);
    println!(
        "{{\"metric\":\"{metric}\",\"value\":{value:.3},\"unit\":\"{unit}\",\"n\":{},\"min\":{min:.3},\"max\":{max:.3}}}",
        values.len()
    );
}

fn cpu() -> Result<Duration, Failure> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

fn peak_rss_mb() -> Result<f64, Failure> {
    Ok(getrusage(UsageWho::RUSAGE_SELF)?.max_rss() as f64 / 1024.0)
}

fn open(dir: &Path) -> Result<(Store, mpsc::Receiver<SyncEvent>, u64), Failure> {
    let (send, receive) = mpsc::channel();
    let mut count = 0;
    let (store, _) = Store::open(
        dir,
        Options::default(),
        &mut |_| {
            count += 1;
            Ok(())
        },
        Box::new(move |event| {
            // The receiver is gone only at the very end.
            let _ = send.send(event);
        }),
    )?;
    Ok((store, receive, count))
}

fn append_run(dir: &Path) -> Result<(f64, f64), Failure> {
    let (mut store, _events, _) = open(dir)?;
    let record = [7u8; 100];
    let (start, cpu_start) = (Instant::now(), cpu()?);
    for index in 0..RECORDS {
        while let Err(error) = store.append(KIND, Class::Ordinary, &record) {
            if !matches!(error, StoreError::Busy { .. }) {
                return Err(error.into());
            }
            store.sync()?;
        }
        if index % BATCH == BATCH - 1 {
            store.flush();
        }
    }
    store.sync()?;
    let wall = RECORDS as f64 / start.elapsed().as_secs_f64();
    let cpu_ns = (cpu()? - cpu_start).as_nanos() as f64 / RECORDS as f64;
    store.close()?;
    Ok((wall, cpu_ns))
}

fn commit_run(dir: &Path, blob: bool) -> Result<Vec<f64>, Failure> {
    let (mut store, events, _) = open(dir)?;
    let mut micros = Vec::with_capacity(COMMITS);
    for _ in 0..COMMITS {
        let start = Instant::now();
        if blob {
            store.blob_put(1, Class::Ordinary, &[3; 1000])?;
        }
        let position = store.append(KIND, Class::Ordinary, &[7; 100])?;
        store.flush();
        while events.recv()? != SyncEvent::Synced(position) {}
        micros.push(start.elapsed().as_secs_f64() * 1e6);
    }
    store.close()?;
    micros.sort_by(f64::total_cmp);
    Ok(micros)
}

fn main() -> Result<(), Failure> {
    let base = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let base = base.join(format!("pf-store-bench-{}", std::process::id()));
    let (mut rates, mut cpus, mut opens, mut replays, mut p50, mut p99, mut blob_p50) =
        (vec![], vec![], vec![], vec![], vec![], vec![], vec![]);
    for run in 0..RUNS {
        let dir = base.join(format!("run{run}"));
        let start = Instant::now();
        open(&dir)?.0.close()?;
        opens.push(start.elapsed().as_secs_f64() * 1e3);
        let (rate, cpu_ns) = append_run(&dir)?;
        rates.push(rate);
        cpus.push(cpu_ns);
        let start = Instant::now();
        let (store, _, count) = open(&dir)?;
        replays.push(count as f64 / start.elapsed().as_secs_f64());
        store.close()?;
        let commits = commit_run(&dir, false)?;
        p50.push(commits[COMMITS / 2]);
        p99.push(commits[COMMITS * 99 / 100]);
        blob_p50.push(commit_run(&dir, true)?[COMMITS / 2]);
    }
    std::fs::remove_dir_all(&base)?;
    report("store.append", "records/s", rates);
    report("store.append_cpu", "ns/record", cpus);
    report("store.replay", "records/s", replays);
    report("store.commit_p50", "us", p50);
    report("store.commit_p99", "us", p99);
    report("store.commit_with_blob_p50", "us", blob_p50);
    report("store.create_and_close", "ms", opens);
    report("store.peak_rss", "MB", vec![peak_rss_mb()?]);
    Ok(())
}
