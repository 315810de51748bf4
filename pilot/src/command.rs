//! From a task to the process that will run it: substitution, environment, directories, files. Used by the spawner threads.

use crate::gpus::GpuEnv;
use crate::programs::{DEFAULT_PATH, Programs};
use nix::sys::memfd::{MFdFlags, memfd_create};
use pf_launcher::ranks::is_of_a_program;
use pf_manager_core::StartCommand;
use pf_protocol::job::{Body, Command as CommandBody, Environment};
use pf_protocol::outcome::ErrorDetail;
use pf_protocol::payload::{self, PayloadRef};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What all tasks of a manager share.
#[derive(Debug)]
pub(crate) struct Context {
    /// The manager's own variables, without those of Pilotfish.
    pub env: Vec<(OsString, OsString)>,
    /// Below it lie the work directories of attempts.
    pub work_dir: PathBuf,
    /// Folder of large payloads, if the relay knows of one.
    pub payloads_dir: Option<PathBuf>,
    /// The endpoint's Python.
    pub python: String,
    /// The worker's source, as a file.
    pub worker_py: PathBuf,
    /// How GPUs are shown to a task.
    pub gpus: GpuEnv,
    /// Where programs were found.
    pub programs: Programs,
}

impl Context {
    /// The environment of this process, less what is for itself.
    pub fn own_env() -> Vec<(OsString, OsString)> {
        let own =
            |name: &OsString| name.as_bytes().starts_with(b"PF_") || is_of_a_program(&name.to_string_lossy());
        std::env::vars_os().filter(|(name, _)| !own(name)).collect()
    }
}

/// A process to be spawned.
pub(crate) struct Prepared {
    pub command: Command,
    /// Whether its standard output goes to a pipe of the manager.
    pub pipe_stdout: bool,
    /// The same for standard error.
    pub pipe_stderr: bool,
}

/// What is put in place of `{..}`.
struct Values<'a> {
    index: String,
    job: String,
    attempt: String,
    item: &'a [u8],
}

impl Values<'_> {
    /// `{index}`, `{item}`, `{job}`, `{attempt}` replaced; what else is in braces stays.
    fn fill(&self, text: &str) -> OsString {
        let mut out: Vec<u8> = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            out.extend_from_slice(&rest.as_bytes()[..at]);
            rest = &rest[at..];
            let known: [(&str, &[u8]); 4] = [
                ("{index}", self.index.as_bytes()),
                ("{item}", self.item),
                ("{job}", self.job.as_bytes()),
                ("{attempt}", self.attempt.as_bytes()),
            ];
            match known.iter().find(|(name, _)| rest.starts_with(name)) {
                Some((name, value)) => {
                    out.extend_from_slice(value);
                    rest = &rest[name.len()..];
                }
                None => {
                    out.push(b'{');
                    rest = &rest[1..];
                }
            }
        }
        out.extend_from_slice(rest.as_bytes());
        OsString::from_vec(out)
    }
}

/// An error for the person whose task it is.
pub(crate) fn refused(message: String, hint: &str) -> ErrorDetail {
    ErrorDetail { message, hint: Some(hint.into()), ..ErrorDetail::default() }
}

/// Makes ready what the task wants; nothing of it runs yet.
pub(crate) fn prepare(start: &StartCommand, context: &Context) -> Result<Prepared, ErrorDetail> {
    let spec = &start.job.spec;
    let Body::Command(body) = &spec.body else {
        return Err(refused(
            "this is not a command".into(),
            "the manager was given a task of another sort: a bug",
        ));
    };
    let label = spec.array.label(start.index);
    let values = Values {
        index: label.to_string(),
        job: start.job.job.to_string(),
        attempt: start.attempt.to_string(),
        item: if body.item_on_stdin { b"" } else { &start.item },
    };
    let mut env = environment(context, &spec.env, |value| values.fill(value));
    let cwd = directory(start, body, context, &values, &mut env)?;
    env.insert("PF_JOB".into(), values.job.clone().into());
    env.insert("PF_INDEX".into(), values.index.clone().into());
    env.insert("PF_TASK".into(), format!("{}.{label}", values.job).into());
    env.insert("PF_ATTEMPT".into(), values.attempt.clone().into());
    bind_env(&mut env, &start.pus, &start.gpus, context);

    let argv: Vec<OsString> = body.argv.iter().map(|arg| values.fill(arg)).collect();
    let Some(program) = argv.first().filter(|p| !p.is_empty()) else {
        return Err(refused("the command is empty".into(), "give a program to run"));
    };
    let has_nul = |text: &OsStr| text.as_bytes().contains(&0);
    if argv.iter().any(|arg| has_nul(arg)) || env.iter().any(|(name, value)| has_nul(name) || has_nul(value))
    {
        return Err(refused(
            "an argument or variable holds a NUL byte".into(),
            "feed such items to standard input",
        ));
    }
    let path = context.programs.find(
        program,
        env.get(OsStr::new("PATH")).map(OsString::as_os_str),
        cwd.as_deref(),
    )?;
    let mut command = Command::new(path);
    command.arg0(program).args(&argv[1..]).env_clear().envs(&env).process_group(0);
    if let Some(cwd) = &cwd {
        command.current_dir(cwd);
    }
    command.stdin(standard_input(start, body, context)?);
    let (pipe_stdout, pipe_stderr) = redirect(&mut command, body, &values, cwd.as_deref())?;
    Ok(Prepared { command, pipe_stdout, pipe_stderr })
}

/// The variables of a task or worker, before those of Pilotfish.
pub(crate) fn environment(
    context: &Context,
    asked: &Environment,
    fill: impl Fn(&str) -> OsString,
) -> BTreeMap<OsString, OsString> {
    let mut env: BTreeMap<OsString, OsString> =
        if asked.clear { BTreeMap::new() } else { context.env.iter().cloned().collect() };
    env.extend(asked.vars.iter().map(|(name, value)| (OsString::from(name), fill(value))));
    env.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
    env
}

/// What the process is bound to, for itself and for the libraries that ask.
pub(crate) fn bind_env(
    env: &mut BTreeMap<OsString, OsString>,
    pus: &[u32],
    gpus: &[usize],
    context: &Context,
) {
    if !pus.is_empty() {
        let set = pus.iter().copied().collect();
        env.insert("PF_CPUS".into(), crate::topology::format_cpu_list(&set).into());
    }
    for (name, value) in context.gpus.variables(gpus) {
        env.insert(name.into(), value.into());
    }
}

/// The directory in which it runs; makes the attempt's own if that is asked.
fn directory(
    start: &StartCommand,
    body: &CommandBody,
    context: &Context,
    values: &Values<'_>,
    env: &mut BTreeMap<OsString, OsString>,
) -> Result<Option<PathBuf>, ErrorDetail> {
    let mut cwd = body.cwd.as_ref().map(|cwd| PathBuf::from(values.fill(cwd)));
    if body.work_dir {
        let dir = context
            .work_dir
            .join(start.job.job.to_string())
            .join(format!("{}-{}", values.index, values.attempt));
        std::fs::create_dir_all(&dir).map_err(|e| {
            refused(
                format!("make work directory {}: {e}", dir.display()),
                "the endpoint's work folder must be writable",
            )
        })?;
        env.insert("PF_WORK_DIR".into(), dir.clone().into());
        cwd.get_or_insert(dir);
    }
    if let Some(dir) = &cwd {
        let hint = "the directory must exist on the node where the task runs";
        match std::fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => {
                return Err(refused(format!("working directory {} is not a directory", dir.display()), hint));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(refused(format!("working directory {} does not exist", dir.display()), hint));
            }
            Err(e) => return Err(refused(format!("working directory {}: {e}", dir.display()), hint)),
        }
    }
    Ok(cwd)
}

fn standard_input(start: &StartCommand, body: &CommandBody, context: &Context) -> Result<Stdio, ErrorDetail> {
    let item = &start.item;
    if !body.item_on_stdin {
        return Ok(Stdio::null());
    }
    if start.is_large {
        return large_item(start, context).map(Stdio::from);
    }
    let feed = || -> std::io::Result<File> {
        let mut file = File::from(memfd_create(c"pf-item", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(item)?;
        file.rewind()?;
        Ok(file)
    };
    let file = feed().map_err(|e| {
        refused(format!("feed the item to standard input: {e}"), "is the node out of memory?")
    })?;
    Ok(file.into())
}

/// The file of an item that is only named.
fn large_item(start: &StartCommand, context: &Context) -> Result<File, ErrorDetail> {
    let named = PayloadRef::read(&start.item).zip(context.payloads_dir.as_ref());
    let (named, dir) = named.ok_or_else(|| {
        refused("its item is a large payload that cannot be found".into(), "this is a bug: please report it")
    })?;
    let path = dir.join(payload::file_name(start.job.job, named.hash, false));
    let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
    match opened {
        Ok((len, file)) if len == named.len => Ok(file),
        other => {
            let why = match other {
                Ok((len, _)) => format!("it has {len} bytes and should have {}", named.len),
                Err(error) => error.to_string(),
            };
            let hint = "the folder of the endpoint's blocks must be the same on all nodes";
            Err(refused(format!("open the task's item {}: {why}", path.display()), hint))
        }
    }
}

/// Files for the output, where they are asked; answers which streams go to the log.
fn redirect(
    command: &mut Command,
    body: &CommandBody,
    values: &Values<'_>,
    cwd: Option<&Path>,
) -> Result<(bool, bool), ErrorDetail> {
    let open = |name: &str| -> Result<(PathBuf, File), ErrorDetail> {
        let file = PathBuf::from(values.fill(name));
        let file = cwd.map_or_else(|| file.clone(), |cwd| cwd.join(&file));
        let opened = OpenOptions::new().write(true).create(true).truncate(true).open(&file);
        let opened = opened.map_err(|e| {
            refused(
                format!("open output file {}: {e}", file.display()),
                "its folder must exist and be writable",
            )
        })?;
        Ok((file, opened))
    };
    let stdout = body.stdout.as_deref().map(open).transpose()?;
    if let Some(name) = &body.stderr {
        let same = stdout.as_ref().filter(|(file, _)| {
            cwd.map_or_else(|| PathBuf::from(values.fill(name)), |c| c.join(values.fill(name))) == *file
        });
        let file = match same {
            Some((_, file)) => {
                file.try_clone().map_err(|e| refused(format!("share an output file: {e}"), "try again"))?
            }
            None => open(name)?.1,
        };
        command.stderr(file);
    }
    let pipes = (stdout.is_none(), body.stderr.is_none());
    if let Some((_, file)) = stdout {
        command.stdout(file);
    }
    Ok(pipes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_words_in_braces_are_replaced_and_only_once() {
        let values =
            Values { index: "7".into(), job: "j1".into(), attempt: "2.3".into(), item: b"{index} x" };
        let fill = |text: &str| values.fill(text).into_string().unwrap();
        assert_eq!(fill("a{index}b{item}c{job}-{attempt}"), "a7b{index} xcj1-2.3");
        assert_eq!(fill("{unknown} {{index}} { {"), "{unknown} {7} { {");
        assert_eq!(fill(""), "");
    }

    #[test]
    fn an_item_need_not_be_text() {
        let values =
            Values { index: String::new(), job: String::new(), attempt: String::new(), item: b"\xff\x01" };
        assert_eq!(values.fill("<{item}>").as_bytes(), b"<\xff\x01>");
    }
}
