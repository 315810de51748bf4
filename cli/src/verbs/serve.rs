//! `serve --private`: the chain for one program, the Python client. Ready when it has printed its socket; ends, in
//! order, when its standard input does (the program closed it or is gone), when the parent is gone, or at SIGTERM.

use super::chain::{Chain, Kind};
use super::run_place::below_a_shared_folder;
use crate::Context;
use crate::args::ServeArgs;
use crate::config::Places;
use crate::error::{Result, io_error};
use crate::exit::Exit;
use serde_json::json;
use std::io::Read;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How often the parent is looked at: only for a parent that left its pipe to somebody else.
const PARENT_LOOK: Duration = Duration::from_secs(1);

/// `pf serve`.
pub async fn serve(context: &Context, args: &ServeArgs) -> Result<Exit> {
    std::fs::create_dir_all(&args.dir).map_err(|e| io_error(format!("make {}", args.dir.display()), e))?;
    let root = args.dir.canonicalize().map_err(|e| io_error(format!("find {}", args.dir.display()), e))?;
    let allocation = match args.workers {
        None => super::run_place::allocation(context, None)?,
        Some(_) => None,
    };
    let mut places = Places::below(&root);
    let shared = allocation.as_ref().map(|found| below_a_shared_folder(context, found)).transpose()?;
    if let Some(shared) = &shared {
        let below = Places::below(shared);
        (places.shared, places.output) = (below.shared, below.output);
    }
    let config = context.config.private(places, args.workers, allocation.as_ref());
    config.places.prepare()?;
    let mut terminated = signal(SignalKind::terminate()).map_err(|e| io_error("watch for SIGTERM", e))?;
    let mut chain = Chain::start(&config, Kind::Private)?;
    context.output.json(
        &json!({"socket": config.places.socket(), "nodes": allocation.map_or(1, |found| found.nodes)}),
    )?;
    tokio::select! {
        () = chain.ended() => {}
        () = end_of_stdin() => {}
        () = end_of_parent(args.parent_pid) => {}
        _ = terminated.recv() => {}
        // A Ctrl-C in the terminal reaches this process too; the program decides what it means.
        () = ignore_interrupts() => {}
    }
    let stopped = chain.stop().await;
    if let Some(shared) = shared {
        std::fs::remove_dir_all(&shared).map_err(|e| io_error(format!("remove {}", shared.display()), e))?;
    }
    if args.parent_pid.is_some_and(|pid| std::os::unix::process::parent_id() != pid) {
        // The program was killed: nobody else removes its folder.
        std::fs::remove_dir_all(&root).map_err(|e| io_error(format!("remove {}", root.display()), e))?;
    }
    stopped.map(|()| Exit::Ok)
}

/// A thread of its own reads: a read that waits in the runtime would keep it from ending.
async fn end_of_stdin() {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut buffer = [0u8; 256];
        let mut stdin = std::io::stdin().lock();
        loop {
            match stdin.read(&mut buffer) {
                Ok(n) if n > 0 => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        // Nobody waits any more when another end came first.
        let _ = ended.send(());
    });
    // The thread always sends before it ends.
    let _ = end.await;
}

async fn end_of_parent(pid: Option<u32>) {
    let Some(pid) = pid else { return std::future::pending().await };
    while std::os::unix::process::parent_id() == pid {
        tokio::time::sleep(PARENT_LOOK).await;
    }
}

async fn ignore_interrupts() {
    while tokio::signal::ctrl_c().await.is_ok() {}
}
