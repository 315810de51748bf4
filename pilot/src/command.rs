//! From a task to the process that will run it: substitution, environment, directories, files. Used by the threads of `lanes`.

use crate::gpus::GpuEnv;
use crate::programs::{DEFAULT_PATH, Programs};
use crate::variables::{Common, Variables, holds_nul};
use nix::sys::memfd::{MFdFlags, memfd_create};
use pf_launcher::ranks::is_of_a_program;
use pf_manager_core::{StartCommand, StartWorker};
use pf_protocol::job::{Body, Command as CommandBody, Environment};
use pf_protocol::outcome::ErrorDetail;
use pf_protocol::payload::{self, PayloadRef};
use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What all tasks of a manager share.
#[derive(Debug)]
pub(crate) struct Context {
    /// The manager's own variables, without those of Pilotfish.
    pub common: Common,
    /// Where a task runs that asks for nothing else: the manager's own working directory.
    pub home: PathBuf,
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
    pub fn common() -> Common {
        let own =
            |name: &OsStr| name.as_bytes().starts_with(b"PF_") || is_of_a_program(&name.to_string_lossy());
        Common::of_this_process(|name| !own(name))
    }

    /// The variables of a task or worker, before those of Pilotfish.
    fn variables(
        &self,
        asked: &Environment,
        fill: impl Fn(&str) -> OsString,
    ) -> Result<Variables<'_>, ErrorDetail> {
        let mut env = if asked.clear { Variables::none() } else { Variables::new(&self.common) };
        for (name, value) in &asked.vars {
            env.set(name, fill(value))?;
        }
        if env.get("PATH").is_none() {
            env.set("PATH", DEFAULT_PATH)?;
        }
        Ok(env)
    }

    /// What a process is bound to, for itself and for the libraries that ask.
    fn bind(&self, env: &mut Variables<'_>, pus: &[u32], gpus: &[usize]) -> Result<(), ErrorDetail> {
        if !pus.is_empty() {
            let set = pus.iter().copied().collect();
            env.set("PF_CPUS", crate::topology::format_cpu_list(&set))?;
        }
        self.gpus.variables(gpus).into_iter().try_for_each(|(name, value)| env.set(name, value))
    }
}

/// A process to be spawned.
pub(crate) struct Prepared<'a> {
    pub program: PathBuf,
    pub argv: Vec<CString>,
    pub env: Variables<'a>,
    pub cwd: PathBuf,
    /// None: nothing to read.
    pub stdin: Option<File>,
    /// None: a pipe of the manager.
    pub stdout: Option<File>,
    /// The same for standard error.
    pub stderr: Option<File>,
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
pub(crate) fn prepare<'a>(start: &StartCommand, context: &'a Context) -> Result<Prepared<'a>, ErrorDetail> {
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
    let mut env = context.variables(&spec.env, |value| values.fill(value))?;
    let cwd = directory(start, body, context, &values, &mut env)?;
    env.set("PF_JOB", &values.job)?;
    env.set("PF_INDEX", &values.index)?;
    env.set("PF_TASK", format!("{}.{label}", values.job))?;
    env.set("PF_ATTEMPT", &values.attempt)?;
    context.bind(&mut env, &start.pus, &start.gpus)?;

    let argv: Vec<OsString> = body.argv.iter().map(|arg| values.fill(arg)).collect();
    let Some(program) = argv.first().filter(|p| !p.is_empty()) else {
        return Err(refused("the command is empty".into(), "give a program to run"));
    };
    let program = context.programs.find(program, env.get("PATH"), &cwd)?;
    let argv = argv.into_iter().map(|arg| CString::new(arg.into_vec()).map_err(|_| holds_nul("an argument")));
    let argv = argv.collect::<Result<_, _>>()?;
    let stdin = standard_input(start, body, context)?;
    let (stdout, stderr) = redirect(body, &values, &cwd)?;
    Ok(Prepared { program, argv, env, cwd, stdin, stdout, stderr })
}

/// The same for a Python worker that finds the manager at these descriptors.
pub(crate) fn prepare_worker<'a>(
    start: &StartWorker,
    context: &'a Context,
    [data, control]: [RawFd; 2],
) -> Result<Prepared<'a>, ErrorDetail> {
    let mut env = context.variables(&start.env, |value| value.into())?;
    context.bind(&mut env, &start.pus, &start.gpus)?;
    env.set("PF_WORKER", start.worker.to_string())?;
    env.set("PF_WORKER_FDS", format!("{data},{control}"))?;
    let python = start.python.as_deref().unwrap_or(&context.python);
    let program = context.programs.find(OsStr::new(python), env.get("PATH"), &context.home).map_err(|e| {
        let hint =
            "name a Python 3.8 or newer that exists on the nodes, for the endpoint or for the function";
        refused(format!("the Python interpreter cannot be started: {}", e.message), hint)
    })?;
    let argv = [python.as_bytes(), context.worker_py.as_os_str().as_bytes()].into_iter();
    let argv = argv.map(|arg| CString::new(arg).map_err(|_| holds_nul("the interpreter's name")));
    let argv = argv.collect::<Result<_, _>>()?;
    let cwd = context.home.clone();
    Ok(Prepared { program, argv, env, cwd, stdin: None, stdout: None, stderr: None })
}

/// The directory in which it runs; makes the attempt's own if that is asked.
fn directory(
    start: &StartCommand,
    body: &CommandBody,
    context: &Context,
    values: &Values<'_>,
    env: &mut Variables<'_>,
) -> Result<PathBuf, ErrorDetail> {
    let mut cwd = body.cwd.as_ref().map(|cwd| context.home.join(values.fill(cwd)));
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
        env.set("PF_WORK_DIR", &dir)?;
        cwd.get_or_insert(dir);
    }
    let Some(dir) = cwd else { return Ok(context.home.clone()) };
    let hint = "the directory must exist on the node where the task runs";
    let error = match std::fs::metadata(&dir) {
        Ok(meta) if meta.is_dir() => return Ok(dir),
        Ok(_) => format!("working directory {} is not a directory", dir.display()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            format!("working directory {} does not exist", dir.display())
        }
        Err(e) => format!("working directory {}: {e}", dir.display()),
    };
    Err(refused(error, hint))
}

fn standard_input(
    start: &StartCommand,
    body: &CommandBody,
    context: &Context,
) -> Result<Option<File>, ErrorDetail> {
    let item = &start.item;
    if !body.item_on_stdin {
        return Ok(None);
    }
    if start.is_large {
        return large_item(start, context).map(Some);
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
    Ok(Some(file))
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

/// Files for standard output and error, where they are asked.
fn redirect(
    body: &CommandBody,
    values: &Values<'_>,
    cwd: &Path,
) -> Result<(Option<File>, Option<File>), ErrorDetail> {
    let path = |name: &str| cwd.join(values.fill(name));
    let open = |file: PathBuf| -> Result<(PathBuf, File), ErrorDetail> {
        let opened = OpenOptions::new().write(true).create(true).truncate(true).open(&file);
        let opened = opened.map_err(|e| {
            refused(
                format!("open output file {}: {e}", file.display()),
                "its folder must exist and be writable",
            )
        })?;
        Ok((file, opened))
    };
    let stdout = body.stdout.as_deref().map(path).map(open).transpose()?;
    let stderr = match (body.stderr.as_deref().map(path), &stdout) {
        (None, _) => None,
        (Some(file), Some((same, stdout))) if file == *same => {
            Some(stdout.try_clone().map_err(|e| refused(format!("share an output file: {e}"), "try again"))?)
        }
        (Some(file), _) => Some(open(file)?.1),
    };
    Ok((stdout.map(|(_, file)| file), stderr))
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
