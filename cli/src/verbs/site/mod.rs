//! `pf site ..`: profiles of machines, and what is true of this one.

mod ask;
mod check;
mod compare;
mod new;
pub mod probe;
mod submit;

use crate::Context;
use crate::args::SiteVerb;
use crate::config::layers::nearest_hint;
use crate::config::profiles::{self, Found};
use crate::error::{CliError, Result};
use crate::exit::Exit;
use crate::output::table::table;
use pf_site_profiles::{Internet, Profile, detect};
use serde_json::json;
use std::path::PathBuf;

/// `pf site ..`.
pub async fn site(context: &Context, verb: SiteVerb) -> Result<Exit> {
    match verb {
        SiteVerb::List => list(context),
        SiteVerb::Show { name, toml } => show(context, &name, toml),
        SiteVerb::Detect => detect_here(context),
        SiteVerb::Check(args) => check::check(context, &args).await,
        SiteVerb::New(args) => new::new(context, &args).await,
        SiteVerb::Probe { .. } => {
            Err(CliError::internal("this verb is dispatched before the configuration is read"))
        }
    }
}

fn folders(context: &Context) -> Result<Vec<PathBuf>> {
    Ok(context.surroundings.sources(context.config_flag.as_deref())?.profiles)
}

/// The profile of this name.
fn find(context: &Context, name: &str) -> Result<Found> {
    let folders = folders(context)?;
    profiles::find(&folders, name)?.ok_or_else(|| {
        let known = profiles::names(&folders);
        CliError::new(Exit::NotFound, format!("there is no site profile {name:?}")).hint(nearest_hint(
            name,
            known.iter().map(String::as_str),
            "profile",
        ))
    })
}

fn list(context: &Context) -> Result<Exit> {
    let mut good = Vec::new();
    for (name, found) in profiles::list(&folders(context)?) {
        match found {
            Ok(found) => good.push(found),
            Err(error) => context.output.say(format!("warning: profile {name} is left out: {error}")),
        }
    }
    let row = |f: &Found| {
        let p = &f.profile;
        json!({
            "name": f.name, "title": p.title, "centre": p.centre, "scheduler": p.scheduler(),
            "launcher": p.setting("launcher"), "status": p.status, "from": f.from(),
        })
    };
    if context.output.json {
        good.iter().try_for_each(|found| context.output.json(&row(found)))?;
        return Ok(Exit::Ok);
    }
    let names: Vec<String> = good.iter().map(|f| f.name.clone()).collect();
    context.output.answer(&json!(names), &names, || {
        let rows = good.iter().map(|f| {
            let p = &f.profile;
            [
                &f.name,
                &p.title,
                &p.centre,
                p.scheduler(),
                p.setting("launcher").unwrap_or(""),
                p.status.word(),
                &f.from(),
            ]
            .map(str::to_owned)
            .to_vec()
        });
        let head = ["NAME", "MACHINE", "CENTRE", "SCHEDULER", "LAUNCHER", "STATUS", "FROM"];
        table(&context.output, &head, rows.collect())
    })?;
    Ok(Exit::Ok)
}

fn show(context: &Context, name: &str, toml: bool) -> Result<Exit> {
    let found = find(context, name)?;
    if toml {
        context.output.bytes(found.text.as_bytes())?;
        return Ok(Exit::Ok);
    }
    let mut all =
        serde_json::to_value(&found.profile).map_err(|e| CliError::internal("write JSON").because(e))?;
    if let Some(object) = all.as_object_mut() {
        object.insert("name".into(), json!(found.name));
        object.insert("from".into(), json!(found.from()));
    }
    context.output.answer(&all, std::slice::from_ref(&found.name), || words(context, &found))?;
    Ok(Exit::Ok)
}

/// A value that nobody has checked is followed by a question mark.
fn marked(value: String, field: &str, unverified: &[String]) -> String {
    let mark = !value.is_empty() && unverified.iter().any(|u| u == field);
    if mark { format!("{value} ?") } else { value }
}

fn number(value: Option<u32>, field: &str, unverified: &[String]) -> String {
    marked(value.map_or(String::new(), |v| v.to_string()), field, unverified)
}

fn words(context: &Context, found: &Found) -> String {
    let p = &found.profile;
    let mut parts = vec![format!("{} ({}), {}, from {}", p.title, found.name, p.status.word(), found.from())];
    if !p.about.is_empty() {
        parts.push(p.about.clone());
    }
    let rows = p.endpoint.iter().map(|(key, value)| {
        vec![key.clone(), marked(value.to_string(), &format!("endpoint.{key}"), &p.unverified)]
    });
    let requires = p.requires.iter().map(|key| vec![key.clone(), "(you must give it)".into()]);
    parts.push(table(&context.output, &["SETTING", "VALUE"], rows.chain(requires).collect()));
    if !p.queues.is_empty() {
        parts.push(queue_table(context, p));
    }
    if !p.nodes.is_empty() {
        parts.push(node_table(context, p));
    }
    match p.network.internet {
        Internet::Unknown => {}
        Internet::Yes => parts.push("Compute nodes reach the internet.".into()),
        Internet::No => parts.push("Compute nodes do not reach the internet.".into()),
        Internet::Proxy => {
            parts.push(format!("Compute nodes reach the web by the proxy {}.", p.network.proxy))
        }
    }
    if let Some(rule) = crate::login::policy(&found.name, p) {
        parts.push(format!("{}. {}", rule.words, rule.hint));
    }
    parts.join("\n\n")
}

fn queue_table(context: &Context, profile: &Profile) -> String {
    let rows = profile.queues.iter().map(|q| {
        vec![
            q.name.clone(),
            number(q.nodes_min, "nodes_min", &q.unverified),
            number(q.nodes_max, "nodes_max", &q.unverified),
            number(q.walltime_max_minutes, "walltime_max_minutes", &q.unverified),
            q.notes(),
        ]
    });
    let name = profile.queues_are.setting().to_uppercase();
    table(&context.output, &[&name, "NODES FROM", "TO", "MINUTES", "NOTES"], rows.collect())
}

fn node_table(context: &Context, profile: &Profile) -> String {
    let rows = profile.nodes.iter().map(|n| {
        let of = |value, field| number(value, field, &n.unverified);
        vec![
            n.name.clone(),
            of(n.count, "count"),
            of(n.cores, "cores"),
            of(n.threads_per_core, "threads_per_core"),
            of(n.memory_gib, "memory_gib"),
            if n.gpu.is_empty() { String::new() } else { format!("{} {}", n.gpus.unwrap_or(0), n.gpu) },
        ]
    });
    table(&context.output, &["NODES", "COUNT", "CORES", "THREADS A CORE", "GIB", "GPUS"], rows.collect())
}

/// Names by which this host may be known: with and without domain.
fn host_names() -> Vec<String> {
    let name = super::chain::host_name();
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    // The name with the domain stands first in the line that has the short one.
    let full = hosts.lines().filter(|l| !l.trim_start().starts_with('#')).find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        let own = words.contains(&name.as_str());
        own.then(|| words.iter().find(|w| w.contains('.')).map(|w| (*w).to_owned())).flatten()
    });
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let domains = resolv.lines().filter_map(|l| l.strip_prefix("search ").or(l.strip_prefix("domain ")));
    let searched = domains.flat_map(str::split_whitespace).map(|domain| format!("{name}.{domain}"));
    let mut all: Vec<String> = std::iter::once(name.clone()).chain(full).collect();
    if !name.contains('.') {
        all.extend(searched);
    }
    all
}

/// Profiles that are this machine's, each with the reason.
fn detected(context: &Context) -> Result<Vec<(Found, String)>> {
    let hosts = host_names();
    let all = profiles::list(&folders(context)?);
    let reason = |found: Found| {
        let why = detect::reason(&found.profile, &context.surroundings.env, &hosts)?;
        Some((found, why))
    };
    // One that cannot be read is told by `site list`.
    Ok(all.into_values().filter_map(|found| reason(found.ok()?)).collect())
}

fn detect_here(context: &Context) -> Result<Exit> {
    let found = detected(context)?;
    if found.is_empty() {
        let error = CliError::new(Exit::NotFound, "no site profile is this machine's");
        return Err(error.hint("`pf site new NAME` writes one from what its scheduler says"));
    }
    for (found, why) in &found {
        let all = json!({"name": found.name, "title": found.profile.title, "why": why, "from": found.from()});
        context.output.answer(&all, std::slice::from_ref(&found.name), || {
            format!("{} ({}): {why}", found.name, found.profile.title)
        })?;
    }
    Ok(Exit::Ok)
}
