//! The binary `pf`: arguments, configuration, and the verbs; it composes broker, relay and pilot from their crates.
//!
//! `main.rs` calls [`main`]; integration tests use the modules to compare what is documented with what is built.

pub mod allocation;
pub mod args;
pub mod array;
pub mod client;
pub mod config;
pub mod error;
pub mod exit;
pub mod limits;
mod login;
pub mod output;
pub mod submit;
pub mod units;
mod verbs;

use args::{Cli, Verb};
use clap::{CommandFactory, Parser};
use config::{Config, Surroundings};
use error::{CliError, Result};
use exit::Exit;
use output::Output;
use std::process::ExitCode;

/// What every verb has at hand.
pub(crate) struct Context {
    config: Config,
    output: Output,
    surroundings: Surroundings,
    /// `--config` as given, to pass it on to a daemon.
    config_flag: Option<std::path::PathBuf>,
}

/// Runs `pf` with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error),
    };
    let json = cli.global.json;
    dispatch(cli).unwrap_or_else(|error| {
        error.print(json);
        error.exit.into()
    })
}

/// The command line is none of ours, or asks for help. Programs get an error in the form of all others.
fn not_understood(error: &clap::Error) -> ExitCode {
    let wants_json = std::env::args_os().skip(1).take_while(|arg| arg != "--").any(|arg| arg == "--json");
    if !(wants_json && error.use_stderr()) {
        error.exit();
    }
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let message = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let error = CliError::usage(message).hint(lines.collect::<Vec<_>>().join("; "));
    error.print(true);
    error.exit.into()
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    // These need no configuration: a block must not fail because of a file that its user is just editing.
    match &cli.verb {
        Verb::Completions { shell } => return completions(*shell).map(Exit::into),
        Verb::Pilot(passed) => return verbs::passed::pilot(&passed.args),
        Verb::Manager(passed) => return verbs::passed::manager(&passed.args),
        Verb::Rank(passed) => return Ok(pf_pilot::rank_main(&passed.args)),
        Verb::Local(passed) => return Ok(verbs::passed::local(&passed.args)),
        Verb::Site(args::SiteVerb::Probe { dir }) => return verbs::site::probe::on_node(dir).map(Exit::into),
        _ => {}
    }
    start_log();
    let surroundings = Surroundings::here();
    let config = Config::load(&surroundings, &surroundings.sources(cli.global.config.as_deref())?)?;
    let output = Output::new(&cli.global);
    let context = Context { config, output, surroundings, config_flag: cli.global.config };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| CliError::internal("start the runtime").because(e))?;
    runtime.block_on(verbs::run(&context, cli.verb)).map(Exit::into)
}

/// What broker and relay note goes to stderr: warnings, or what PILOTFISH_LOG says (`info`, `pf_relay=debug`).
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PILOTFISH_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}

fn completions(shell: clap_complete::Shell) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pf", &mut script);
    Output { json: false, quiet: false, colour: false, live: false }.bytes(&script)?;
    Ok(Exit::Ok)
}
