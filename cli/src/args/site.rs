//! `pf site ..`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `pf site ..`
#[derive(Debug, Subcommand)]
pub enum SiteVerb {
    /// Site profiles that there are
    #[command(after_help = "Examples:
  pf site list
  pf site list --json | jq -r 'select(.status == \"active\") | .name'")]
    List,
    /// The facts of one machine
    #[command(after_help = "Examples:
  pf site show perlmutter
  pf site show --toml polaris > ~/.config/pilotfish/site-profiles/polaris.toml")]
    Show {
        /// Name of the profile
        name: String,
        /// The file itself, with the source of each value
        #[arg(long, conflicts_with = "json")]
        toml: bool,
    },
    /// Which machine this is, from environment and host name
    #[command(after_help = "Examples:
  pf site detect
  pf endpoint add here --profile \"$(pf site detect --quiet)\"")]
    Detect,
    /// What this login node, the scheduler and the configuration would do to a block
    ///
    /// Runs the scheduler's own commands, those that change nothing, and compares what they say with the profile. With --submit a block of
    /// one node looks at everything from inside. Exit code 1 if something would not work.
    #[command(after_help = "Examples:
  pf site check
  pf site check perlmutter
  pf site check --submit --timeout 1h")]
    Check(SiteCheckArgs),
    /// Write a profile of this machine from what its scheduler says
    #[command(after_help = "Examples:
  pf site new mycluster
  pf site new mycluster --submit
  pf site new mycluster --scheduler pbs --out -")]
    New(SiteNewArgs),
    /// The part of a check that runs on a compute node
    #[command(
        hide = true,
        after_help = "Examples:
  pf site probe DIR"
    )]
    Probe {
        /// Folder with the request
        dir: PathBuf,
    },
}

/// `pf site check`.
#[derive(Debug, Args)]
pub struct SiteCheckArgs {
    /// Name of the profile; without it, that of this machine
    pub name: Option<String>,
    /// Submit a block of one node that looks around
    #[arg(long)]
    pub submit: bool,
    /// The endpoint whose settings count; without it, the first that uses the profile
    #[arg(long, value_name = "NAME")]
    pub endpoint: Option<String>,
    /// How long to wait for that block
    #[arg(long, value_name = "TIME", requires = "submit", default_value = "30m", value_parser = crate::units::duration_ms)]
    pub timeout: u64,
}

/// `pf site new`.
#[derive(Debug, Args)]
pub struct SiteNewArgs {
    /// A name for the profile
    pub name: String,
    /// Whom to ask, where several schedulers seem to be there
    #[arg(long, value_name = "NAME", value_parser = pf_site_profiles::survey::SCHEDULERS)]
    pub scheduler: Option<String>,
    /// File to write, - for standard output; without it, among your own profiles
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Submit a block of one node as well, to see what a node is
    #[arg(long)]
    pub submit: bool,
    /// How long to wait for that block
    #[arg(long, value_name = "TIME", requires = "submit", default_value = "30m", value_parser = crate::units::duration_ms)]
    pub timeout: u64,
}
