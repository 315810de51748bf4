//! The verbs that look after jobs, blocks, endpoints, functions, broker and relay.

use super::work::{JobRef, Pair, label};
use clap::{Args, Subcommand, ValueEnum};
use pf_protocol::BlockId;
use std::path::PathBuf;

/// States that `job list --state` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StateArg {
    /// Waits for other jobs
    Waiting,
    /// Has unfinished tasks, or takes more
    Active,
    /// All tasks succeeded
    Ok,
    /// Some tasks failed
    Failed,
    /// Cancelled as a whole
    Cancelled,
}

impl StateArg {
    /// The word of the API.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            StateArg::Waiting => "waiting",
            StateArg::Active => "active",
            StateArg::Ok => "ok",
            StateArg::Failed => "failed",
            StateArg::Cancelled => "cancelled",
        }
    }
}

/// `pf job ..`
#[derive(Debug, Subcommand)]
pub enum JobVerb {
    /// Jobs, newest first
    #[command(after_help = "Examples:
  pf job list
  pf job list --state failed --label project=ising --quiet")]
    List(JobListArgs),
    /// One job: tasks by state, failures in groups, where the time went
    #[command(after_help = "Examples:
  pf job show j12
  pf job show j12 --tasks")]
    Show(JobShowArgs),
    /// Why its tasks are where they are
    #[command(after_help = "Examples:
  pf job explain j12")]
    Explain {
        /// The job
        job: JobRef,
    },
    /// Run again what failed, as a new job with the same labels
    #[command(after_help = "Examples:
  pf job retry --failed j12")]
    Retry {
        /// The job
        job: JobRef,
        /// Only the tasks that failed: the one choice there is, said so that nobody is surprised
        #[arg(long, required = true)]
        failed: bool,
    },
    /// Drop ended jobs and their results
    #[command(after_help = "Examples:
  pf job forget j12
  pf job list --state ok --quiet | xargs pf job forget")]
    Forget {
        /// Jobs that are over
        #[arg(required = true)]
        jobs: Vec<JobRef>,
    },
}

/// `pf job list`.
#[derive(Debug, Args)]
pub struct JobListArgs {
    /// Only jobs in this state
    #[arg(long)]
    pub state: Option<StateArg>,
    /// Only jobs of this name
    #[arg(long)]
    pub name: Option<String>,
    /// Only jobs with this label
    #[arg(long, value_name = "K=V", value_parser = label)]
    pub label: Vec<Pair>,
    /// As many as this
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: u32,
}

/// `pf job show`.
#[derive(Debug, Args)]
pub struct JobShowArgs {
    /// The job
    pub job: JobRef,
    /// List its tasks too
    #[arg(long)]
    pub tasks: bool,
    /// Only tasks in this state: queued, assigned, running, value, exit, signal, ..
    #[arg(long, requires = "tasks", value_name = "STATE")]
    pub state: Option<String>,
}

/// `pf block ..`
#[derive(Debug, Subcommand)]
pub enum BlockVerb {
    /// Blocks of one endpoint, or of all
    #[command(after_help = "Examples:
  pf block list
  pf block list --endpoint local --json")]
    List {
        /// Only this endpoint's
        #[arg(long, short)]
        endpoint: Option<String>,
    },
    /// The tail of a block's own log
    #[command(after_help = "Examples:
  pf block log 7
  pf block log b7 --endpoint cluster")]
    Log(BlockArgs),
    /// Give a block back: it drains, then ends
    #[command(after_help = "Examples:
  pf block cancel 7")]
    Cancel(BlockArgs),
}

/// One block.
#[derive(Debug, Args)]
pub struct BlockArgs {
    /// The block
    pub block: BlockId,
    /// Its endpoint; the default one if not said
    #[arg(long, short)]
    pub endpoint: Option<String>,
}

/// `pf endpoint ..`
#[derive(Debug, Subcommand)]
pub enum EndpointVerb {
    /// Make an endpoint on this host: writes it to your configuration
    #[command(after_help = "Examples:
  pf endpoint add bench --profile local
  pf endpoint add cluster --profile generic-slurm --set queue=debug nodes_per_block=4
  pf endpoint add cluster --relay-key 'KEY OF A RELAY ELSEWHERE'")]
    Add(EndpointAddArgs),
    /// Endpoints and how they are
    #[command(after_help = "Examples:
  pf endpoint list")]
    List,
    /// One endpoint: blocks, managers, what waits
    #[command(after_help = "Examples:
  pf endpoint show local")]
    Show {
        /// Its name
        name: String,
    },
    /// Let an endpoint take nodes and tasks (again)
    #[command(after_help = "Examples:
  pf endpoint start local")]
    Start {
        /// Its name
        name: String,
    },
    /// Take no new tasks, let those that run end, give the nodes back
    #[command(after_help = "Examples:
  pf endpoint stop local
  pf endpoint stop --kill local")]
    Stop {
        /// Its name
        name: String,
        /// Do not wait for tasks that run
        #[arg(long)]
        kill: bool,
    },
    /// What the relay decided lately and why: blocks, tasks that wait
    #[command(after_help = "Examples:
  pf endpoint explain local")]
    Explain {
        /// Its name
        name: String,
    },
    /// Start no new tasks; those that run go on, nodes are kept
    #[command(after_help = "Examples:
  pf endpoint pause local")]
    Pause {
        /// Its name
        name: String,
    },
    /// End a pause
    #[command(after_help = "Examples:
  pf endpoint resume local")]
    Resume {
        /// Its name
        name: String,
    },
    /// Forget an endpoint; only without unfinished tasks
    #[command(after_help = "Examples:
  pf endpoint remove bench")]
    Remove {
        /// Its name
        name: String,
    },
}

/// `pf endpoint add`.
#[derive(Debug, Args)]
pub struct EndpointAddArgs {
    /// Its name
    pub name: String,
    /// Site profile of this host
    #[arg(long, value_name = "PROFILE", default_value = "local", conflicts_with = "relay_key")]
    pub profile: String,
    /// A setting that differs from the profile: queue=debug, nodes_per_block=4 (`pf config show` names them)
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting, num_args = 1.., conflicts_with = "relay_key")]
    pub set: Vec<(String, String)>,
    /// Its relay runs elsewhere and has this key (`pf relay run` prints it)
    #[arg(long, value_name = "KEY")]
    pub relay_key: Option<String>,
}

/// `pf function ..`
#[derive(Debug, Subcommand)]
pub enum FunctionVerb {
    /// Registered functions
    #[command(after_help = "Examples:
  pf function list")]
    List,
    /// One function's content
    #[command(after_help = "Examples:
  pf function show 5f36c82691a31878679695fb8f0595b140875bd42c17138af2d3a38a3662915b")]
    Show {
        /// Its id
        function: pf_protocol::FunctionId,
    },
    /// Register a function by its source and print its id
    #[command(after_help = "Examples:
  pf function register simulate.py:main")]
    Register {
        /// A Python file and a function in it
        #[arg(value_name = "FILE:NAME")]
        function: String,
    },
}

/// `pf broker ..`
#[derive(Debug, Subcommand)]
pub enum BrokerVerb {
    /// Start it in the background, with the relays of this host's endpoints
    #[command(after_help = "Examples:
  pf broker start")]
    Start,
    /// Run it in the foreground, for a service manager
    #[command(after_help = "Examples:
  pf broker run
  systemd-run --user --unit=pilotfish pf broker run")]
    Run {
        /// Begin a session of its own (what `start` does)
        #[arg(long, hide = true)]
        detach: bool,
    },
    /// End it in order; tasks that run at endpoints go on where their blocks live
    #[command(after_help = "Examples:
  pf broker stop")]
    Stop,
    /// Who it is and how it is
    #[command(after_help = "Examples:
  pf broker status --json")]
    Status,
    /// Tokens for clients on other hosts
    #[command(
        subcommand,
        after_help = "Examples:
  pf broker token add laptop > token
  pf broker token list"
    )]
    Token(TokenVerb),
    /// Print the key that relays of other hosts must be told
    #[command(after_help = "Examples:
  pf relay run cluster --broker login1:9100 --broker-key \"$(ssh login1 pf broker key)\"")]
    Key,
    /// Print the certificate that clients on other hosts must pin
    #[command(after_help = "Examples:
  pf broker cert > broker.crt")]
    Cert,
}

/// `pf broker token ..`
#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Make a token and print it, once
    #[command(after_help = "Examples:
  umask 077; pf broker token add laptop > ~/.config/pilotfish/token")]
    Add {
        /// A name, to revoke it by
        name: String,
    },
    /// Names of the tokens
    #[command(after_help = "Examples:
  pf broker token list")]
    List,
    /// Make a token worthless
    #[command(after_help = "Examples:
  pf broker token revoke laptop")]
    Revoke {
        /// Its name
        name: String,
    },
}

/// `pf relay ..`
#[derive(Debug, Subcommand)]
pub enum RelayVerb {
    /// Run the relay of an endpoint in the foreground
    #[command(after_help = "Examples:
  pf relay run cluster --broker login1:9100 --broker-key KEY")]
    Run(RelayRunArgs),
    /// Print the key by which the broker knows this host's relay of an endpoint
    #[command(after_help = "Examples:
  pf endpoint add cluster --relay-key \"$(ssh cluster pf relay key cluster)\"")]
    Key {
        /// Name of the endpoint
        endpoint: String,
    },
}

/// `pf relay run`.
#[derive(Debug, Args)]
pub struct RelayRunArgs {
    /// Name of the endpoint
    pub endpoint: String,
    /// Where the broker lets relays in
    #[arg(long, value_name = "HOST:PORT", required = true)]
    pub broker: Vec<String>,
    /// The broker's key (`pf broker key` prints it there)
    #[arg(long, value_name = "KEY")]
    pub broker_key: String,
    /// Take the endpoint from a relay that is still heard
    #[arg(long)]
    pub takeover: bool,
}

/// `pf config ..`
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Every value that holds, and where it came from
    #[command(after_help = "Examples:
  pf config show
  pf config show --json")]
    Show,
}

/// `KEY=VALUE` of `--set`.
fn setting(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(k, v)| (k.into(), v.into())).ok_or_else(|| "a setting is written KEY=VALUE".into())
}

/// The file and the name of `FILE:NAME`.
#[must_use]
pub fn split_function(text: &str) -> Option<(PathBuf, String)> {
    let (file, name) = text.rsplit_once(':')?;
    let good = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    (good && !file.is_empty()).then(|| (PathBuf::from(file), name.to_owned()))
}
