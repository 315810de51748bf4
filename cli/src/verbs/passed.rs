//! `pilot`, `manager`, `rank`, `local`: processes of a block and the scheduler of this machine, whose code is in crates of their own.
//! Their arguments are written by our own providers and launchers, not by people.

use crate::error::{CliError, Result};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// The value after `flag`.
fn value<'a>(args: &'a [OsString], flag: &str) -> Result<&'a OsString> {
    let at = args.iter().position(|a| a == flag);
    at.and_then(|at| args.get(at + 1)).ok_or_else(|| CliError::usage(format!("{flag} is missing")))
}

/// `pf pilot --ticket FILE`.
pub fn pilot(args: &[OsString]) -> Result<ExitCode> {
    Ok(pf_pilot::pilot_main(&PathBuf::from(value(args, "--ticket")?)))
}

/// `pf manager --ticket FILE --node N [--environment FILE] [--guard] [--tether]`, where N is a number or the variable in which the launcher says it.
pub fn manager(args: &[OsString]) -> Result<ExitCode> {
    let environment = args.iter().any(|a| a == "--environment");
    Ok(pf_pilot::manager_main(&pf_pilot::ManagerArgs {
        ticket: PathBuf::from(value(args, "--ticket")?),
        node: value(args, "--node")?.to_string_lossy().into_owned(),
        environment: if environment { Some(PathBuf::from(value(args, "--environment")?)) } else { None },
        guard: args.iter().any(|a| a == "--guard"),
        tether: args.iter().any(|a| a == "--tether"),
    }))
}

/// `pf local ..`.
pub fn local(args: &[OsString]) -> ExitCode {
    pf_relay::local_scheduler::main(args)
}
