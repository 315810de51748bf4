//! The part of `pf site check --submit` that runs on a compute node, in place of a pilot: looks around, and writes what it saw into its
//! folder. Also the two files between both sides.

use super::ask;
use crate::error::{CliError, Result, io_error};
use crate::exit::Exit;
use crate::limits::{PROBE_BYTES_MAX, PROBE_CONNECT_TIME, PROBE_LINGER, PROBE_LOOK};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Name of the file that the node reads.
pub const REQUEST: &str = "probe-request.json";

/// Name of the file that the node writes.
pub const SEEN: &str = "probe.json";

/// Name of the file by which the login node lets the probe end: a scheduler tells the walltime of a job that runs.
const HEARD: &str = "probe-heard";

/// Variables that tell when a job ends or how long it may run, by scheduler.
const TIME_VARIABLES: [&str; 5] =
    ["SLURM_JOB_END_TIME", "PBS_WALLTIME", "COBALT_ENDTIME", "LSB_JOB_END_TIME", "SLURM_TIMELIMIT"];

/// What the node is told to look at.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Request {
    /// What our marker files hold, and what our listeners say: nobody else's are taken for ours.
    pub nonce: String,
    /// The four places by name.
    pub places: BTreeMap<String, PathBuf>,
    /// Where the login node listens.
    pub addresses: Vec<SocketAddr>,
    /// The endpoint's Python.
    pub python: String,
}

/// A place as the node sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The login node's marker is there: it is the same folder.
    pub visible: bool,
    /// It can be written, or made and written.
    pub writable: bool,
}

/// What the node saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Name of the node.
    pub host: String,
    /// Sockets, cores, hardware threads and NUMA nodes that the job may use.
    pub sockets: u32,
    /// See above.
    pub cores: u32,
    /// See above.
    pub threads: u32,
    /// See above.
    pub numa: u32,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Models of the GPUs.
    pub gpus: Vec<String>,
    /// `glibc 2.36`.
    pub libc: String,
    /// What the endpoint's Python calls itself, or why it does not run.
    pub python: std::result::Result<String, String>,
    /// TMPDIR, or /tmp.
    pub tmpdir: PathBuf,
    /// Whether it can be written.
    pub tmpdir_writable: bool,
    /// The four places by name.
    pub places: BTreeMap<String, Place>,
    /// Whether each address of the login node was reached, or why not.
    pub reached: BTreeMap<SocketAddr, std::result::Result<(), String>>,
    /// What the scheduler's variables say of the job's end.
    pub time: BTreeMap<String, String>,
}

/// The marker that the login node (`login`) or the compute node (`node`) leaves in a place.
pub fn marker(place: &Path, nonce: &str, side: &str) -> PathBuf {
    place.join(format!(".pf-probe-{nonce}-{side}"))
}

/// Reads a small JSON file.
pub fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let mut text = String::new();
    let file = std::fs::File::open(path).and_then(|f| f.take(PROBE_BYTES_MAX).read_to_string(&mut text));
    file.map_err(|e| io_error(format!("read {}", path.display()), e))?;
    serde_json::from_str(&text).map_err(|e| CliError::internal(format!("read {}", path.display())).because(e))
}

/// Writes a JSON file so that it is there as a whole or not at all.
pub fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|e| CliError::internal("write JSON").because(e))?;
    let draft = path.with_extension("draft");
    let written = std::fs::write(&draft, text).and_then(|()| std::fs::rename(&draft, path));
    written.map_err(|e| io_error(format!("write {}", path.display()), e))
}

/// `pf site probe DIR`.
pub fn on_node(dir: &Path) -> Result<Exit> {
    let request: Request = read(&dir.join(REQUEST))?;
    write(&dir.join(SEEN), &look(&request))?;
    // If the login node has gone away, or its files do not come here, this ends all the same.
    let until = Instant::now() + PROBE_LINGER;
    while dir.exists() && !dir.join(HEARD).exists() && Instant::now() < until {
        std::thread::sleep(PROBE_LOOK);
    }
    Ok(Exit::Ok)
}

/// Lets the probe in this folder end.
pub fn let_end(dir: &Path) -> Result<()> {
    let path = dir.join(HEARD);
    std::fs::write(&path, "").map_err(|e| io_error(format!("write {}", path.display()), e))
}

fn look(request: &Request) -> Seen {
    let shape = pf_pilot::topology::read_local().unwrap_or_default();
    let python = ask::run(&[
        request.python.clone(),
        "-c".into(),
        "import sys; print(sys.executable, sys.version.split()[0])".into(),
    ]);
    let python = match python.exit {
        Some(0) => Ok(python.stdout.trim().to_owned()),
        _ => Err(python.stderr.trim().to_owned()),
    };
    let tmpdir = std::env::temp_dir();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Seen {
        host: crate::verbs::chain::host_name(),
        sockets: shape.packages,
        cores: count(shape.cores.len()),
        threads: count(shape.threads()),
        numa: count(shape.numa.iter().filter(|n| n.kind.is_empty()).count()),
        memory_bytes: shape.memory_bytes,
        gpus: shape.gpus.iter().map(|g| g.model.clone()).collect(),
        libc: ask::run(&["getconf".into(), "GNU_LIBC_VERSION".into()]).stdout.trim().to_owned(),
        python,
        tmpdir_writable: writable(&tmpdir.join(format!(".pf-probe-{}", request.nonce)), &request.nonce, true),
        tmpdir,
        places: request
            .places
            .iter()
            .map(|(name, path)| (name.clone(), place(path, &request.nonce)))
            .collect(),
        reached: request.addresses.iter().map(|a| (*a, reach(*a, &request.nonce))).collect(),
        time: TIME_VARIABLES
            .into_iter()
            .filter_map(|v| Some((v.to_owned(), std::env::var(v).ok()?)))
            .collect(),
    }
}

/// Whether a file can be written there; `drop` takes it away again.
fn writable(path: &Path, text: &str, drop: bool) -> bool {
    let written = std::fs::write(path, text).is_ok();
    if drop && written {
        // Nothing depends on it.
        let _ = std::fs::remove_file(path);
    }
    written
}

fn place(path: &Path, nonce: &str) -> Place {
    let visible = std::fs::read_to_string(marker(path, nonce, "login")).is_ok_and(|text| text == nonce);
    // A place that is this host's own may have to be made first; what comes of it shows in the writing.
    let _ = std::fs::create_dir_all(path);
    // The login node looks for this one, and removes it; where it cannot see it nobody would.
    Place { visible, writable: writable(&marker(path, nonce, "node"), nonce, !visible) }
}

/// Connects, and hears the nonce: another program on that port is not us.
fn reach(address: SocketAddr, nonce: &str) -> std::result::Result<(), String> {
    let mut stream = TcpStream::connect_timeout(&address, PROBE_CONNECT_TIME).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(PROBE_CONNECT_TIME)).map_err(|e| e.to_string())?;
    let mut said = vec![0u8; nonce.len()];
    stream.read_exact(&mut said).map_err(|e| e.to_string())?;
    if said == nonce.as_bytes() { Ok(()) } else { Err("another program answers there".into()) }
}
