//! The command line as given. `work` holds what `run` and `submit` share; `crate::submit` resolves it.
//!
//! Every verb has an example in its help; a test walks all of them.

pub mod manage;
pub mod site;
pub mod work;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

pub use manage::{
    BlockVerb, BrokerVerb, ConfigVerb, EndpointVerb, FunctionVerb, JobVerb, RelayVerb, TokenVerb,
};
pub use site::{SiteCheckArgs, SiteNewArgs, SiteVerb};
pub use work::{JobRef, TaskRef, WorkArgs};

/// Functions, commands and MPI programs on supercomputers, by the million.
#[derive(Debug, Parser)]
#[command(
    name = "pf",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
#[command(
    max_term_width = 110,
    after_help = "Examples:
  pf run --array 1-100 -- ./simulate --seed {index}     everything in one command, nothing left behind
  pf submit --each-line inputs.txt -- ./analyse {item}  leave it to the daemon
  pf status                                             see where everything stands

stdout is data, stderr is talk. Exit codes: 0 ok, 1 some tasks failed, 2 usage, 3 refused, 4 not found,
5 no broker, 6 internal, 7 timed out, 130 interrupted."
)]
pub struct Cli {
    /// What holds for all verbs.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of all verbs.
#[derive(Debug, Clone, Default, Args)]
pub struct Global {
    /// Print JSON: one object, or one a line where there may be many
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Print ids or names alone, and no talk on stderr
    #[arg(long, short, global = true, conflicts_with = "json", help_heading = "Global options")]
    pub quiet: bool,
    /// Configuration file in place of the user's own
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run work here and now, wait for it, and leave nothing behind
    ///
    /// Broker, relay and workers live as long as this command, in a folder of their own. The exit code is the work's:
    /// of a single task its own, else 0 or 1. Ctrl-C cancels and cleans up, a second one kills. In an allocation of a batch scheduler it uses all
    /// nodes, ends before the walltime, and tells how to go on in another.
    #[command(after_help = "Examples:
  pf run -- ./simulate --seed 7
  pf run --array 1-1000:3%50 --name sweep -- ./simulate --seed {index}
  ls *.gz | pf run --each-line - -- gunzip --keep {item}
  pf run --cores 4 --time-limit 10m --retries 2 --array 0-7 -- ./solve part-{index}.dat
  sbatch -N4 --wrap 'exec pf run --array 1-1000 -- ./simulate {index}'
  pf run --resume pf-run-4711")]
    Run(RunArgs),
    /// Give work to the broker and print the job's id
    #[command(after_help = "Examples:
  pf submit --array 1-1000 -- ./simulate --seed {index}
  JOB=$(pf submit --quiet --each-line inputs.txt --retries 2 -- ./analyse {item})
  pf submit --after $JOB -- ./summarise")]
    Submit(WorkArgs),
    /// Wait until jobs are over
    #[command(after_help = "Examples:
  pf wait j12
  pf wait --timeout 10m j12 j13 || pf job show j12")]
    Wait(WaitArgs),
    /// Where everything stands: broker, endpoints, jobs
    #[command(after_help = "Examples:
  pf status
  pf status --json | jq .endpoints")]
    Status,
    /// What a task printed, also while it runs
    #[command(after_help = "Examples:
  pf logs j12.7
  pf logs -f j12.7
  pf logs --stderr j12")]
    Logs(LogsArgs),
    /// Outcomes of a job as they come, or the value of one task
    #[command(after_help = "Examples:
  pf results j12
  pf results --follow --json j12 | jq -r .state
  pf results j12.7 > value.bin")]
    Results(ResultsArgs),
    /// Cancel jobs or tasks
    #[command(after_help = "Examples:
  pf cancel j12
  pf cancel --keep-running j12
  pf cancel j12.3 j12.7")]
    Cancel(CancelArgs),
    /// Jobs: list, show, explain, retry, forget
    #[command(
        subcommand,
        after_help = "Examples:
  pf job list --state failed
  pf job show j12"
    )]
    Job(JobVerb),
    /// Blocks: the batch jobs that hold nodes
    #[command(
        subcommand,
        after_help = "Examples:
  pf block list
  pf block log 7"
    )]
    Block(BlockVerb),
    /// Endpoints: the places where tasks run
    #[command(
        subcommand,
        after_help = "Examples:
  pf endpoint list
  pf endpoint explain local"
    )]
    Endpoint(EndpointVerb),
    /// Registered Python functions
    #[command(
        subcommand,
        after_help = "Examples:
  pf function register simulate.py:main
  pf function list"
    )]
    Function(FunctionVerb),
    /// The broker of this host, with the relays of its endpoints
    #[command(
        subcommand,
        after_help = "Examples:
  pf broker start
  pf broker status"
    )]
    Broker(BrokerVerb),
    /// The relay of an endpoint whose broker is elsewhere
    #[command(
        subcommand,
        after_help = "Examples:
  pf relay run cluster --broker login1:9100 --broker-key KEY"
    )]
    Relay(RelayVerb),
    /// Machines: facts about them, and what is true of this one
    #[command(
        subcommand,
        after_help = "Examples:
  pf site list
  pf site check"
    )]
    Site(SiteVerb),
    /// What is configured, and where each value came from
    #[command(
        subcommand,
        after_help = "Examples:
  pf config show
  pf config show --json | jq '.\"places.durable\"'"
    )]
    Config(ConfigVerb),
    /// Print completions for a shell
    #[command(after_help = "Examples:
  pf completions bash > ~/.local/share/bash-completion/completions/pf
  pf completions zsh > ~/.zfunc/_pf")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Serve one program through a private folder; ends when stdin does
    #[command(
        hide = true,
        after_help = "Examples:
  pf serve --private --dir /tmp/x --workers 2"
    )]
    Serve(ServeArgs),
    /// The process that a block's batch script starts
    #[command(
        hide = true,
        disable_help_flag = true,
        after_help = "Examples:
  pf pilot --ticket DIR/ticket.json"
    )]
    Pilot(PassedOn),
    /// The scheduler of this machine, for blocks of the provider `local`
    #[command(
        hide = true,
        disable_help_flag = true,
        after_help = "Examples:
  pf local status DIR"
    )]
    Local(PassedOn),
    /// The process that a launcher starts on each node
    #[command(
        hide = true,
        disable_help_flag = true,
        after_help = "Examples:
  pf manager --ticket DIR/ticket.json --node 0"
    )]
    Manager(PassedOn),
    /// The process as which each rank of a program begins
    #[command(
        hide = true,
        disable_help_flag = true,
        after_help = "Examples:
  pf rank --family slurm --attempt 1.7 --per-node 2 --size 4 --pus 2*0-1/2-3 -- ./solve"
    )]
    Rank(PassedOn),
}

/// Arguments that another part of the program reads.
#[derive(Debug, Args)]
pub struct PassedOn {
    /// As they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<std::ffi::OsString>,
}

/// `pf run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The work.
    #[command(flatten)]
    pub work: WorkArgs,
    /// Cores of this machine to use; more than there are: tasks share them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = "Run")]
    pub workers: Option<u32>,
    /// This machine alone, also in an allocation of several nodes (--workers means that too)
    #[arg(long, help_heading = "Run")]
    pub local: bool,
    /// Keep log, results and outputs in DIR; in an allocation all nodes must see it
    #[arg(long, value_name = "DIR", conflicts_with = "resume", help_heading = "Run")]
    pub keep: Option<PathBuf>,
    /// Go on with what a run that had to end has left undone; DIR is the folder that it named
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with_all = ["command", "array", "each_line"],
        help_heading = "Run"
    )]
    pub resume: Option<PathBuf>,
    /// Time until the end of the allocation, where its scheduler does not say it
    #[arg(long, value_name = "TIME", value_parser = crate::units::duration_ms, help_heading = "Run")]
    pub time_left: Option<u64>,
    /// Do not print what the tasks print
    #[arg(long, help_heading = "Run")]
    pub no_output: bool,
}

/// `pf wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Jobs to wait for
    #[arg(required = true, value_name = "JOB")]
    pub jobs: Vec<JobRef>,
    /// Give up after this long, with exit code 7
    #[arg(long, value_name = "TIME", value_parser = crate::units::duration_ms)]
    pub timeout: Option<u64>,
}

/// `pf logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// A task, or a job of one task
    #[arg(value_name = "JOB.TASK")]
    pub task: TaskRef,
    /// Go on until the task ends
    #[arg(long, short)]
    pub follow: bool,
    /// Only standard output
    #[arg(long, conflicts_with = "stderr")]
    pub stdout: bool,
    /// Only standard error
    #[arg(long)]
    pub stderr: bool,
}

/// `pf results`.
#[derive(Debug, Args)]
pub struct ResultsArgs {
    /// A job, or one task for its value as it is
    #[arg(value_name = "JOB[.TASK]")]
    pub task: TaskRef,
    /// Go on until the job is over
    #[arg(long, short)]
    pub follow: bool,
    /// Only what comes after this cursor (from --json)
    #[arg(long, value_name = "CURSOR")]
    pub after: Option<String>,
}

/// `pf cancel`.
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// Jobs, or tasks of jobs
    #[arg(required = true, value_name = "JOB[.TASK]")]
    pub tasks: Vec<TaskRef>,
    /// Let what runs come to its end
    #[arg(long)]
    pub keep_running: bool,
    /// End them at once even where the endpoint is absent: they may still run there
    #[arg(long)]
    pub force: bool,
}

/// `pf serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Only this kind exists: for the one program that started it
    #[arg(long, required = true)]
    pub private: bool,
    /// Folder for everything
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Cores to use
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub workers: Option<u32>,
    /// End when this process is gone
    #[arg(long, value_name = "PID")]
    pub parent_pid: Option<u32>,
}
