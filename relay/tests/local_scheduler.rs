//! The local scheduler as processes: this test binary is its own `pf local`, as the real `pf` is. Hence no libtest harness.

use pf_protocol::report::{BlockEnd, BlockState};
use pf_providers::{
    BlockRequest, KnownBlock, Observed, Output, Plan, Provider, ProviderConfig, ProviderError, provider,
};
use pf_relay::{command, local_scheduler};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

struct Site {
    folder: tempfile::TempDir,
    provider: Box<dyn Provider>,
    program: String,
}

/// Longer than any of the scheduler's own patience.
const WAIT: Duration = Duration::from_secs(120);

impl Site {
    fn new() -> Site {
        Site::whose_blocks_end_with(None)
    }

    fn whose_blocks_end_with(ends_with: Option<u32>) -> Site {
        let program = std::env::current_exe().expect("own path").to_string_lossy().into_owned();
        let config = ProviderConfig {
            name: "local".into(),
            program: program.clone(),
            ends_with,
            ..ProviderConfig::default()
        };
        let provider = provider(&config).expect("local is known");
        Site { folder: tempfile::tempdir().expect("a folder"), provider, program }
    }

    fn run(&self, plan: &Plan) -> Output {
        command::run(plan, None).expect("the command runs")
    }

    fn try_submit(&self, request: &BlockRequest) -> Result<String, ProviderError> {
        self.provider.submitted(&self.run(&self.provider.submit(request).expect("a plan")))
    }

    fn cancel(&self, block: &KnownBlock) {
        let plan = self.provider.cancel(block, 0).expect("a plan");
        self.provider.cancelled(&self.run(&plan)).expect("taken");
    }

    /// Submits a shell script in place of a pilot: `pilot` of this binary runs it.
    fn submit(&self, name: &str, script: &str, walltime_ms: u64) -> KnownBlock {
        let dir = self.folder.path().join(name);
        std::fs::create_dir(&dir).expect("make the block's folder");
        std::fs::write(dir.join("ticket.json"), script).expect("write the script");
        let dir = dir.to_string_lossy().into_owned();
        let request = BlockRequest {
            name: name.into(),
            dir: dir.clone(),
            program: self.program.clone(),
            nodes: 1,
            walltime_ms,
            ..BlockRequest::default()
        };
        let id = self.try_submit(&request).expect("an id");
        KnownBlock { name: name.into(), id: Some(id), dir }
    }

    fn status(&self, blocks: &[&KnownBlock]) -> Vec<Observed> {
        let blocks: Vec<KnownBlock> = blocks.iter().map(|b| (*b).clone()).collect();
        self.provider.observed(&self.run(&self.provider.status(&blocks))).expect("a status")
    }

    fn wait(&self, block: &KnownBlock, what: impl Fn(&BlockState) -> bool) -> BlockState {
        let until = Instant::now() + WAIT;
        loop {
            let seen = self.status(&[block]);
            if let Some(state) = seen.iter().map(|o| &o.state).find(|s| what(s)) {
                return state.clone();
            }
            assert!(Instant::now() < until, "{}: {seen:?}", block.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn end(&self, block: &KnownBlock) -> BlockState {
        self.wait(block, |s| matches!(s, BlockState::Ended(_)))
    }

    fn wait_for_file(&self, block: &KnownBlock, name: &str) -> String {
        let until = Instant::now() + WAIT;
        loop {
            let text = std::fs::read_to_string(Path::new(&block.dir).join(name)).unwrap_or_default();
            if text.ends_with('\n') {
                return text.trim().into();
            }
            assert!(Instant::now() < until, "{name} of {} does not come", block.name);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn ends_are_told_as_they_were() {
    let site = Site::new();
    let good = site.submit("good", "exit 0", 60_000);
    let bad = site.submit("bad", "echo no module >&2; exit 7", 60_000);
    let killed = site.submit("killed", "kill -9 $$", 60_000);
    assert_eq!(site.end(&good), BlockState::Ended(BlockEnd::Completed));
    assert_eq!(site.end(&bad), BlockState::Ended(BlockEnd::Failed(7)));
    assert_eq!(site.end(&killed), BlockState::Ended(BlockEnd::Signal(9)));
    let log = std::fs::read_to_string(Path::new(&bad.dir).join(local_scheduler::BLOCK_LOG)).expect("a log");
    assert!(log.contains("no module"), "{log}");
    let seen = site.status(&[&good, &bad, &killed]);
    assert_eq!(seen.iter().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["good", "bad", "killed"]);
    assert_eq!(seen[0].id, good.id.expect("an id"));
}

fn walltime_is_a_word_first_and_no_failure() {
    let site = Site::new();
    let block = site.submit("w", "trap 'echo warned; exit 4' TERM; sleep 1000 & wait", 1_000);
    assert_eq!(site.status(&[&block])[0].state, BlockState::Running);
    assert_eq!(site.end(&block), BlockState::Ended(BlockEnd::Walltime));
    let log = std::fs::read_to_string(Path::new(&block.dir).join(local_scheduler::BLOCK_LOG)).expect("a log");
    assert!(log.contains("warned"), "the program heard SIGTERM: {log:?}");
}

fn cancel_ends_it_and_what_it_left_behind() {
    let site = Site::new();
    let script = "setsid sh -c 'echo $$ > orphan; exec sleep 1000' & trap 'exit 0' TERM; sleep 1000 & wait";
    let block = site.submit("c", script, 600_000);
    let orphan = site.wait_for_file(&block, "orphan");
    site.cancel(&block);
    assert_eq!(site.end(&block), BlockState::Ended(BlockEnd::Cancelled));
    assert!(!Path::new("/proc").join(&orphan).exists(), "{orphan} outlived its block");
    // Over already is no error.
    site.cancel(&block);
}

fn a_block_ends_with_the_process_that_it_is_for() {
    let mut master = std::process::Command::new("sleep").arg("1000").spawn().expect("start sleep");
    let site = Site::whose_blocks_end_with(Some(master.id()));
    let block = site.submit("m", "trap 'echo warned; exit 0' TERM; sleep 1000 & wait", 600_000);
    assert_eq!(site.status(&[&block])[0].state, BlockState::Running);
    master.kill().expect("kill sleep");
    // A zombie is gone, too.
    assert_eq!(site.end(&block), BlockState::Ended(BlockEnd::Cancelled));
    master.wait().expect("wait for sleep");
    let log = std::fs::read_to_string(Path::new(&block.dir).join(local_scheduler::BLOCK_LOG)).expect("a log");
    assert!(log.contains("warned"), "the program heard SIGTERM: {log:?}");
    let late = site.submit("late", "exec sleep 1000", 600_000);
    assert_eq!(site.end(&late), BlockState::Ended(BlockEnd::Cancelled));
}

fn a_folder_has_one_block_and_an_unknown_one_is_not_listed() {
    let site = Site::new();
    let block = site.submit("once", "exit 0", 60_000);
    let request = BlockRequest {
        name: "twice".into(),
        dir: block.dir.clone(),
        program: site.program.clone(),
        nodes: 1,
        walltime_ms: 1_000,
        ..BlockRequest::default()
    };
    let refused = site.try_submit(&request).expect_err("refused");
    assert!(refused.to_string().contains("has had a block already"), "{refused}");
    let unknown = KnownBlock {
        dir: site.folder.path().join("none").to_string_lossy().into_owned(),
        ..KnownBlock::default()
    };
    assert_eq!(site.status(&[&unknown]), []);
    site.end(&block);
}

fn a_program_that_is_not_there_is_a_failure_with_its_name() {
    let site = Site::new();
    let dir = site.folder.path().join("m");
    std::fs::create_dir(&dir).expect("make the folder");
    let dir = dir.to_string_lossy().into_owned();
    let argv = [
        &site.program,
        "local",
        "submit",
        "--name",
        "m",
        "--dir",
        &dir,
        "--walltime-s",
        "9",
        "--",
        "/no/such/pf",
    ];
    let id = site
        .provider
        .submitted(&site.run(&Plan { argv: argv.map(String::from).into(), ..Plan::default() }))
        .expect("an id");
    let block = KnownBlock { name: "m".into(), id: Some(id), dir };
    assert_eq!(site.end(&block), BlockState::Ended(BlockEnd::Failed(127)));
    let log = std::fs::read_to_string(Path::new(&block.dir).join(local_scheduler::BLOCK_LOG)).expect("a log");
    assert!(log.contains("/no/such/pf"), "{log}");
}

/// Stands for the pilot: runs the "ticket" as a script.
fn pilot(args: &[OsString]) -> ExitCode {
    use std::os::unix::process::CommandExt;
    let Some(ticket) = args.get(1) else { return ExitCode::FAILURE };
    let error = std::process::Command::new("sh").arg(ticket).exec();
    panic!("run the script: {error}");
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|a| a.to_str()) {
        Some("local") => return local_scheduler::main(&args[1..]),
        Some("pilot") => return pilot(&args[1..]),
        _ => {}
    }
    let tests: [(&str, fn()); 6] = [
        ("ends_are_told_as_they_were", ends_are_told_as_they_were),
        ("walltime_is_a_word_first_and_no_failure", walltime_is_a_word_first_and_no_failure),
        ("cancel_ends_it_and_what_it_left_behind", cancel_ends_it_and_what_it_left_behind),
        ("a_block_ends_with_the_process_that_it_is_for", a_block_ends_with_the_process_that_it_is_for),
        (
            "a_folder_has_one_block_and_an_unknown_one_is_not_listed",
            a_folder_has_one_block_and_an_unknown_one_is_not_listed,
        ),
        (
            "a_program_that_is_not_there_is_a_failure_with_its_name",
            a_program_that_is_not_there_is_a_failure_with_its_name,
        ),
    ];
    let mut failed = 0;
    for (name, test) in &tests {
        let ok = std::panic::catch_unwind(test).is_ok();
        failed += usize::from(!ok);
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {word}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out",
        tests.len() - failed
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
