//! `pf site check`: everything that can be seen from a login node without changing anything, and with --submit what a node sees.

use super::compare::{self, Finding, Verdict, Wanted};
use super::{ask, detected, find, submit};
use crate::Context;
use crate::args::SiteCheckArgs;
use crate::config::EndpointConfig;
use crate::config::profiles::Found;
use crate::error::{CliError, Result};
use crate::exit::Exit;
use crate::output::table::table;
use pf_site_profiles::Profile;
use pf_site_profiles::survey::Survey;
use std::path::Path;

/// `pf site check`.
pub async fn check(context: &Context, args: &SiteCheckArgs) -> Result<Exit> {
    let (found, mut findings) = subject(context, args)?;
    let endpoint = endpoint(context, args, &found)?;
    let scheduler = scheduler(&found, endpoint);
    let survey = if scheduler == "local" { None } else { ask_scheduler(&scheduler, &mut findings) };
    if let Some(survey) = &survey {
        findings.extend(compare::queues(&found.profile, survey));
    }
    match endpoint {
        Some(endpoint) => findings.extend(of_endpoint(context, &found, survey.as_ref(), endpoint)),
        None => findings.push(Finding::warning(
            "endpoint",
            format!("none uses profile {}", found.name),
            format!("`pf endpoint add {} --profile {}` makes one", found.name, found.name),
        )),
    }
    findings.extend(login_rules(context, &found));
    findings.extend(places(context));
    if args.submit {
        let endpoint = endpoint.ok_or_else(|| {
            CliError::usage(format!(
                "no endpoint uses profile {}, so nobody says what to ask for",
                found.name
            ))
            .hint(format!("`pf endpoint add {} --profile {}`, or --endpoint NAME", found.name, found.name))
        })?;
        match submit::probe(context, endpoint, args.timeout).await {
            Ok((seen, _)) => findings.extend(seen),
            Err(error) => {
                // What was found before may tell why.
                print(context, &findings)?;
                return Err(error);
            }
        }
    }
    print(context, &findings)
}

fn print(context: &Context, findings: &[Finding]) -> Result<Exit> {
    let bad = findings.iter().any(|f| f.verdict == Verdict::Problem);
    if context.output.json {
        findings.iter().try_for_each(|f| context.output.json(f))?;
    } else {
        let word = |f: &Finding| match f.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Problem => "failed",
        };
        let rows = findings.iter().map(|f| {
            let words = f.hint.as_ref().map_or(f.words.clone(), |hint| format!("{}\nhint: {hint}", f.words));
            vec![word(f).to_owned(), f.about.clone(), words]
        });
        context.output.line(table(&context.output, &["", "WHAT", "FOUND"], rows.collect()))?;
    }
    Ok(if bad { Exit::TasksFailed } else { Exit::Ok })
}

/// The profile that is meant: named, or this machine's, or that of an endpoint which is not local, or that of this machine alone.
fn subject(context: &Context, args: &SiteCheckArgs) -> Result<(Found, Vec<Finding>)> {
    let about = "machine";
    let mut here = detected(context)?;
    if let Some(name) = &args.name {
        let found = find(context, name)?;
        let finding = match here.iter().find(|(f, _)| f.name == *name) {
            Some((_, why)) => Finding::ok(about, format!("this is {name}: {why}")),
            None if found.profile.detect.env.is_empty() && found.profile.detect.hosts.is_empty() => {
                Finding::ok(about, format!("{name} does not say how it is recognised"))
            }
            None => Finding::warning(
                about,
                format!("nothing here says that this is {name}"),
                "see `pf site detect`",
            ),
        };
        return Ok((found, vec![finding]));
    }
    if !here.is_empty() {
        let (found, why) = here.remove(0);
        let finding = Finding::ok(about, format!("this is {}: {why}", found.name));
        return Ok((found, vec![finding]));
    }
    let chosen = args.endpoint.clone().or_else(|| {
        let other = context.config.endpoints.values().find(|e| e.provider != "local");
        other.map(|e| e.name.clone())
    });
    let profiles = &context.config.settings.profiles;
    let found = match chosen.and_then(|name| profiles.get(&name)) {
        Some(found) => found.clone(),
        None => find(context, "local")?,
    };
    let words = format!("no profile is this machine's; checking with {}", found.name);
    let hint = match ask::schedulers_here().first() {
        Some(scheduler) => format!("{scheduler} is here: `pf site new NAME` writes a profile"),
        None => "no scheduler's commands are in PATH".into(),
    };
    Ok((found, vec![Finding::warning(about, words, hint)]))
}

fn endpoint<'a>(
    context: &'a Context,
    args: &SiteCheckArgs,
    found: &Found,
) -> Result<Option<&'a EndpointConfig>> {
    let endpoints = &context.config.endpoints;
    if let Some(name) = &args.endpoint {
        let endpoint = endpoints.get(name);
        return endpoint.map(Some).ok_or_else(|| {
            let known = endpoints.keys().map(String::as_str);
            CliError::new(Exit::NotFound, format!("endpoint {name} is not configured on this host"))
                .hint(crate::config::layers::nearest_hint(name, known, "endpoint"))
        });
    }
    let uses = |e: &&EndpointConfig| {
        context.config.settings.profiles.get(&e.name).is_some_and(|f| f.name == found.name)
    };
    Ok(endpoints.values().find(uses))
}

fn scheduler(found: &Found, endpoint: Option<&EndpointConfig>) -> String {
    endpoint.map_or_else(|| found.profile.scheduler().to_owned(), |e| e.provider.clone())
}

fn ask_scheduler(scheduler: &str, findings: &mut Vec<Finding>) -> Option<Survey> {
    match ask::survey(scheduler) {
        Ok(survey) => {
            let dialect = survey.dialect.map_or(String::new(), |d| format!(", dialect {d}"));
            findings
                .push(Finding::ok("scheduler", format!("{scheduler} answers: {}{dialect}", survey.version)));
            Some(survey)
        }
        Err(error) => {
            let hint = "is this a login node, and is a module for the scheduler loaded?";
            findings.push(Finding::problem("scheduler", error.to_string(), hint));
            None
        }
    }
}

fn of_endpoint(
    context: &Context,
    found: &Found,
    survey: Option<&Survey>,
    endpoint: &EndpointConfig,
) -> Vec<Finding> {
    let about = format!("endpoint {}", endpoint.name);
    let mut findings = Vec::new();
    if let Some(missing) = missing(&found.profile, context, &endpoint.name) {
        let hint = format!("set endpoints.{}.{missing} in your configuration", endpoint.name);
        findings.push(Finding::problem(
            &about,
            format!("{missing} is not set, and {} refuses jobs without", found.profile.title),
            hint,
        ));
    }
    for shape in &endpoint.shapes {
        let wanted = Wanted {
            endpoint: endpoint.name.clone(),
            queue: shape.asks.queue.clone(),
            qos: shape.asks.qos.clone(),
            constraint: shape.asks.constraint.clone(),
            nodes: shape.nodes_per_block,
            walltime_minutes: shape.walltime_ms.div_ceil(60_000),
        };
        findings.extend(compare::wanted(&found.profile, survey, &wanted));
    }
    findings.push(match crate::verbs::chain::listen_for_managers(endpoint) {
        Ok(addresses) => {
            Finding::ok("interfaces", format!("nodes would reach the relay at {}", addresses.join(", ")))
        }
        Err(error) => {
            let there = pf_relay::addresses::by_interface().unwrap_or_default();
            let names: Vec<String> = there.iter().map(|(name, ip)| format!("{name} ({ip})")).collect();
            Finding::problem("interfaces", error.to_string(), format!("this host has {}", names.join(", ")))
        }
    });
    let python = ask::run(&[endpoint.python.clone(), "--version".into()]);
    findings.push(match python.exit {
        Some(0) => Finding::ok(
            "python",
            format!("{}: {}{}", endpoint.python, python.stdout.trim(), python.stderr.trim()),
        ),
        _ => Finding::warning(
            "python",
            format!("{} does not run here: {}", endpoint.python, python.stderr.trim()),
            "Python functions need it on the nodes: set python, or load it in setup",
        ),
    });
    findings
}

/// The first setting that the profile requires and that is empty.
pub fn missing(profile: &Profile, context: &Context, endpoint: &str) -> Option<String> {
    crate::config::typed::first_missing(&context.config.settings, endpoint, &profile.requires)
}

fn login_rules(context: &Context, found: &Found) -> Vec<Finding> {
    let user = context.surroundings.var("USER").unwrap_or("USER");
    let rules = crate::login::System::here(user).rules();
    let mut findings: Vec<Finding> = rules
        .into_iter()
        .chain(crate::login::policy(&found.name, &found.profile))
        .map(|rule| Finding::warning("login node", rule.words, rule.hint))
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok("login node", "no rule was found that would end a daemon"));
    }
    findings
}

/// The four places: made and probed, and whether other hosts can see the shared one.
fn places(context: &Context) -> Vec<Finding> {
    let places = &context.config.places;
    if let Err(error) = places.prepare() {
        let lines = error.lines();
        return vec![Finding::problem(
            "places",
            lines[0].trim_start_matches("error: "),
            lines[1..].join("; "),
        )];
    }
    let kind = file_system(&places.shared);
    let local = ["tmpfs", "ramfs", "overlay", "ext4", "xfs", "btrfs"].contains(&kind.as_str());
    let shown = places.shared.display();
    let only_local = context.config.endpoints.values().all(|e| e.provider == "local");
    vec![if local && !only_local {
        let words = format!("shared is {shown} on {kind}, which compute nodes may not see");
        Finding::warning("places", words, "set places.shared to a folder that all nodes see; --submit tells")
    } else {
        Finding::ok("places", format!("all four can be written; shared is {shown} ({kind})"))
    }]
}

/// The kind of file system that holds `path`, from the mounts of this process.
fn file_system(path: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (point, kind) = (words.nth(1)?, words.next()?);
        path.starts_with(point).then_some((point.len(), kind))
    });
    fields.max_by_key(|(length, _)| *length).map_or("unknown".into(), |(_, kind)| kind.to_owned())
}
