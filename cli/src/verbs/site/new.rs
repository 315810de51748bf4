//! `pf site new`: a profile from what the scheduler says, and from a probe if wanted.

use super::{ask, host_names, submit};
use crate::Context;
use crate::args::SiteNewArgs;
use crate::config::profiles;
use crate::error::{CliError, Result, io_error};
use crate::exit::Exit;
use crate::units::show_time;
use pf_providers::Asks;
use pf_site_profiles::Node;
use pf_site_profiles::survey::{Machine, render};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// `pf site new`.
pub async fn new(context: &Context, args: &SiteNewArgs) -> Result<Exit> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if args.name.is_empty() || !args.name.chars().all(good) {
        return Err(CliError::usage(format!("{:?} cannot be the name of a profile", args.name))
            .hint("use letters, digits, - and _"));
    }
    let target = target(context, args)?;
    let scheduler = scheduler(args)?;
    let survey = ask::survey(&scheduler).map_err(|e| {
        CliError::new(Exit::Unreachable, format!("ask {scheduler} about this machine"))
            .because(e)
            .hint("is this a login node, and is a module for the scheduler loaded?")
    })?;
    let private = pf_relay::addresses::private_addresses().unwrap_or_default();
    let mut interfaces: Vec<String> = pf_relay::addresses::by_interface()
        .unwrap_or_default()
        .into_iter()
        .filter(|(_, ip)| private.contains(&ip.to_string()))
        .map(|(name, _)| name)
        .collect();
    interfaces.dedup();
    let mut machine = Machine {
        title: args.name.clone(),
        launcher: launcher(&scheduler, survey.dialect).into(),
        scheduler,
        host: host_names().pop().unwrap_or_default(),
        interfaces,
        day: today(),
        node: None,
    };
    if args.submit {
        machine.node = Some(probe(context, args, &machine).await?);
    }
    let text = render(&machine, &survey);
    match target {
        Some(path) => {
            write(&path, &text)?;
            context.output.say(format!(
                "wrote {}; look it over, then `pf endpoint add NAME --profile {}`",
                path.display(),
                args.name
            ));
        }
        None => context.output.bytes(text.as_bytes())?,
    }
    Ok(Exit::Ok)
}

fn today() -> String {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    show_time(now_ms).split(' ').next().unwrap_or_default().to_owned()
}

/// The file to write; None for standard output. Nothing is overwritten.
fn target(context: &Context, args: &SiteNewArgs) -> Result<Option<PathBuf>> {
    let path = match &args.out {
        Some(path) if path == Path::new("-") => return Ok(None),
        Some(path) => path.clone(),
        None => context.surroundings.user_dir()?.join("site-profiles").join(format!("{}.toml", args.name)),
    };
    if path.exists() {
        let error = CliError::new(Exit::Refused, format!("{} is there already", path.display()));
        return Err(error.hint("choose another name, or --out FILE"));
    }
    if args.out.is_none() && profiles::names(&[]).contains(&args.name) {
        context.output.say(format!("note: pf has a profile {} of its own; yours takes its place", args.name));
    }
    Ok(Some(path))
}

fn scheduler(args: &SiteNewArgs) -> Result<String> {
    if let Some(scheduler) = &args.scheduler {
        return Ok(scheduler.clone());
    }
    match ask::schedulers_here().as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => Err(CliError::new(Exit::NotFound, "no scheduler's commands are in PATH")
            .hint("load its module, or name it with --scheduler")),
        several => Err(CliError::usage(format!("commands of {} are in PATH", several.join(" and ")))
            .hint("choose with --scheduler")),
    }
}

/// The launcher that every such machine has; the profile's reader is told to look it over.
fn launcher(scheduler: &str, dialect: Option<&str>) -> &'static str {
    match (scheduler, dialect) {
        ("slurm", _) => "srun",
        ("pbs", Some("torque")) => "pbsdsh",
        ("pbs", _) => "pbs_tmrsh",
        ("lsf", Some("openlava")) | ("cobalt", _) => "ssh",
        _ => "blaunch",
    }
}

async fn probe(context: &Context, args: &SiteNewArgs, machine: &Machine) -> Result<Node> {
    let Some(mut endpoint) = context.config.endpoints.values().next().cloned() else {
        return Err(CliError::internal("no endpoint is configured"));
    };
    endpoint.name.clone_from(&args.name);
    endpoint.provider.clone_from(&machine.scheduler);
    endpoint.dialect = None;
    endpoint.shapes.truncate(1);
    for shape in &mut endpoint.shapes {
        shape.asks = Asks::default();
        shape.walltime_ms = 10 * 60_000;
    }
    endpoint.interfaces = Vec::new();
    let (_, seen) = submit::probe(context, &endpoint, args.timeout).await?;
    let gpus = &seen.gpus;
    Ok(Node {
        name: "probed".into(),
        sockets: Some(seen.sockets).filter(|n| *n > 0),
        cores: Some(seen.cores),
        threads_per_core: seen.threads.checked_div(seen.cores),
        numa: Some(seen.numa).filter(|n| *n > 0),
        memory_gib: u32::try_from(seen.memory_bytes >> 30).ok(),
        gpus: u32::try_from(gpus.len()).ok(),
        gpu: gpus.first().cloned().unwrap_or_default(),
        ..Node::default()
    })
}

fn write(path: &Path, text: &str) -> Result<()> {
    let make = || {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, text)
    };
    make().map_err(|e| io_error(format!("write site profile {}", path.display()), e))
}
