//! The rank shim, `pf rank .. -- program`: every rank of a program begins as it. It reads which rank it is, binds itself to its share of the node, shows
//! it its GPUs, and becomes the program. So binding is the same under every launcher, and no launcher binds.

use crate::process;
use crate::spawn::cpu_set;
use nix::sched::{sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use pf_launcher::{decode_share, ranks};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Why a rank cannot begin.
#[derive(Debug, thiserror::Error)]
enum RankError {
    #[error("{0} is missing, or not what it should be")]
    Argument(&'static str),
    #[error("find this rank's place: {0}")]
    Place(String),
    #[error("bind rank {rank} to CPUs {pus:?}: {why}")]
    Bind { rank: usize, pus: Vec<u32>, why: String },
    #[error("start {program:?}")]
    Exec { program: OsString, source: io::Error },
}

/// What the launcher's command says of all ranks.
struct RankArgs {
    family: String,
    attempt: String,
    per_node: usize,
    size: usize,
    pus: String,
    /// Variable and shares.
    gpus: Option<(String, String)>,
    program: Vec<OsString>,
}

impl RankArgs {
    fn parse(args: &[OsString]) -> Result<Self, RankError> {
        let at = args.iter().position(|arg| arg == "--").ok_or(RankError::Argument("--"))?;
        let (own, program) = (&args[..at], &args[at + 1..]);
        let text = |flag: &'static str| -> Result<String, RankError> {
            let at = own.iter().position(|arg| arg == flag).ok_or(RankError::Argument(flag))?;
            let value = own.get(at + 1).and_then(|value| value.to_str());
            value.map(String::from).ok_or(RankError::Argument(flag))
        };
        let number = |flag: &'static str| text(flag)?.parse().map_err(|_| RankError::Argument(flag));
        let gpus = match text("--gpus") {
            Ok(given) => {
                let (variable, shares) = given.split_once('=').ok_or(RankError::Argument("--gpus"))?;
                Some((variable.into(), shares.into()))
            }
            Err(_) => None,
        };
        if program.is_empty() {
            return Err(RankError::Argument("the program"));
        }
        Ok(RankArgs {
            family: text("--family")?,
            attempt: text("--attempt")?,
            per_node: number("--per-node")?,
            size: number("--size")?,
            pus: text("--pus")?,
            gpus,
            program: program.to_vec(),
        })
    }
}

/// Becomes the program; comes back only when it cannot, with 1 and the reason on standard error.
pub fn rank_main(args: &[OsString]) -> ExitCode {
    process::exit_code("rank", become_program(args).map(|never| match never {}))
}

fn become_program(args: &[OsString]) -> Result<std::convert::Infallible, RankError> {
    let args = RankArgs::parse(args)?;
    let env: BTreeMap<String, String> = process::text_environment();
    let place = ranks::place(&args.family, &env, args.per_node, args.size).map_err(RankError::Place)?;
    let share = |shares: &str| decode_share(shares, place.node, place.local).map_err(RankError::Place);
    bind(place.rank, share(&args.pus)?)?;
    let mut command = Command::new(&args.program[0]);
    command.args(&args.program[1..]);
    command.env("PF_ATTEMPT", &args.attempt).env("PF_RANK", place.rank.to_string());
    command.env("PF_RANKS", args.size.to_string()).env("PF_LOCAL_RANK", place.local.to_string());
    if let Some((variable, shares)) = &args.gpus {
        let gpus: Vec<String> = share(shares)?.iter().map(u32::to_string).collect();
        command.env(variable, gpus.join(","));
        if variable == "CUDA_VISIBLE_DEVICES" {
            // Our numbers are in the order of PCI addresses; CUDA's own order is by speed.
            command.env("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
        }
    }
    let source = command.exec();
    Err(RankError::Exec { program: args.program[0].clone(), source })
}

/// Binds this process, and looks whether the kernel did it: a cgroup takes away what it does not allow without a word.
fn bind(rank: usize, pus: Vec<u32>) -> Result<(), RankError> {
    let Some(wanted) = cpu_set(&pus) else { return Ok(()) };
    let own = Pid::from_raw(0);
    let bound = sched_setaffinity(own, &wanted).and_then(|()| sched_getaffinity(own));
    match bound {
        Ok(bound) if bound == wanted => Ok(()),
        Ok(_) => Err(RankError::Bind { rank, pus, why: "not all of them may be used here".into() }),
        Err(error) => Err(RankError::Bind { rank, pus, why: error.to_string() }),
    }
}
