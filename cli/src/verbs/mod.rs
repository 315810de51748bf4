//! One function for each verb. Called by `dispatch` with configuration and arguments in place.

pub mod chain;
mod daemon;
mod endpoints;
mod follow;
mod functions;
mod jobs;
mod manage;
pub mod passed;
mod printed;
mod run;
mod run_place;
mod serve;
pub mod site;
mod wait;

use crate::Context;
use crate::args::Verb;
use crate::error::{CliError, Result};
use crate::exit::Exit;

/// Runs one verb.
pub(crate) async fn run(context: &Context, verb: Verb) -> Result<Exit> {
    match verb {
        Verb::Run(args) => run::run(context, &args).await,
        Verb::Submit(args) => jobs::submit(context, &args).await,
        Verb::Wait(args) => wait::wait(context, &args).await,
        Verb::Status => manage::status(context).await,
        Verb::Logs(args) => follow::logs(context, &args).await,
        Verb::Results(args) => follow::results(context, &args).await,
        Verb::Cancel(args) => jobs::cancel(context, &args).await,
        Verb::Job(verb) => jobs::job(context, verb).await,
        Verb::Block(verb) => endpoints::block(context, verb).await,
        Verb::Endpoint(verb) => endpoints::endpoint(context, verb).await,
        Verb::Function(verb) => functions::function(context, verb).await,
        Verb::Broker(verb) => daemon::broker(context, verb).await,
        Verb::Relay(verb) => daemon::relay(context, verb).await,
        Verb::Config(crate::args::ConfigVerb::Show) => manage::config_show(context),
        Verb::Site(verb) => site::site(context, verb).await,
        Verb::Serve(args) => serve::serve(context, &args).await,
        Verb::Completions { .. } | Verb::Pilot(_) | Verb::Manager(_) | Verb::Rank(_) | Verb::Local(_) => {
            Err(CliError::internal("this verb is dispatched before the configuration is read"))
        }
    }
}
