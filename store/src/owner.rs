//! Who holds the folder: the epoch file, its text, and what can be said of the process that it names. Used by `lease`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::error::{IoContext, StoreError};
use crate::limits::OWNER_BYTES_MAX;

/// A process, named so that another process on the same host can tell whether it still lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub host: String,
    /// The kernel's boot id: the same only on the same host since the same start.
    pub boot: String,
    /// Inode of the pid namespace: a pid says nothing outside of it.
    pub pid_namespace: String,
    pub pid: u32,
    /// Start time in clock ticks since boot; tells a process from a later one with the same pid.
    pub started_ticks: u64,
}

/// What is known of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    Alive,
    Dead,
    /// On another host, before another boot, or in another pid namespace.
    Unknown,
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_string()).unwrap_or_default()
}

/// Start time of a process of this host, `None` when it is gone or only waits to be reaped.
fn started_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in parentheses, may hold spaces and parentheses of its own.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

impl Process {
    /// This process.
    pub fn current() -> Self {
        let pid = std::process::id();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let host = nix::unistd::gethostname().unwrap_or_default();
        Self {
            host: host.to_string_lossy().replace(char::is_whitespace, "_"),
            boot: first_line("/proc/sys/kernel/random/boot_id"),
            pid_namespace: namespace.to_string_lossy().into_owned(),
            pid,
            started_ticks: started_ticks(pid).unwrap_or(0),
        }
    }

    /// Whether it lives, as far as this process can tell.
    pub fn liveness(&self) -> Liveness {
        let here = Process::current();
        if self.boot.is_empty() || self.boot != here.boot || self.pid_namespace != here.pid_namespace {
            return Liveness::Unknown;
        }
        let exists = i32::try_from(self.pid).is_ok_and(|pid| match kill(Pid::from_raw(pid), None) {
            Ok(()) | Err(Errno::EPERM) => true,
            Err(_) => false,
        });
        if !exists {
            return Liveness::Dead;
        }
        match fs::exists(format!("/proc/{}", self.pid)) {
            // Processes of others can be hidden in /proc: then the pid alone has to do.
            Ok(false) | Err(_) => Liveness::Alive,
            Ok(true) if started_ticks(self.pid) == Some(self.started_ticks) => Liveness::Alive,
            Ok(true) => Liveness::Dead,
        }
    }
}

/// Content of an epoch file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub process: Process,
    pub epoch: u64,
    /// Counts renewals; a taker watches it change.
    pub renewals: u64,
    /// Position that was synced at the renewal: proof for recovery.
    pub synced: u64,
    /// Given back in an orderly way.
    pub released: bool,
}

impl Owner {
    pub fn to_text(&self) -> String {
        let Process { host, boot, pid_namespace, pid, started_ticks } = &self.process;
        let body = format!(
            "pilotfish-store-owner 1\nepoch {}\nhost {host}\nboot {boot}\npid-namespace {pid_namespace}\npid {pid}\n\
             started-ticks {started_ticks}\nrenewals {}\nsynced {}\nreleased {}\n",
            self.epoch, self.renewals, self.synced, self.released
        );
        format!("{body}crc {:08x}\n", crc32fast::hash(body.as_bytes()))
    }

    /// `None` when the text is torn, damaged or of another version.
    pub fn from_text(text: &str) -> Option<Self> {
        let at = text.rfind("crc ")?;
        let (body, crc) = text.split_at(at);
        let crc = u32::from_str_radix(crc.strip_prefix("crc ")?.trim_end(), 16).ok()?;
        if crc != crc32fast::hash(body.as_bytes()) {
            return None;
        }
        let mut lines = body.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ').map(str::to_string);
        if field("pilotfish-store-owner")? != "1" {
            return None;
        }
        let epoch = field("epoch")?.parse().ok()?;
        let process = Process {
            host: field("host")?,
            boot: field("boot")?,
            pid_namespace: field("pid-namespace")?,
            pid: field("pid")?.parse().ok()?,
            started_ticks: field("started-ticks")?.parse().ok()?,
        };
        Some(Self {
            process,
            epoch,
            renewals: field("renewals")?.parse().ok()?,
            synced: field("synced")?.parse().ok()?,
            released: field("released")?.parse().ok()?,
        })
    }

    /// Reads an epoch file: its text, and its meaning if it has one. `None` if there is no such file.
    pub fn read(path: &Path) -> Result<Option<(String, Option<Self>)>, StoreError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).on("open", path),
        };
        let mut bytes = Vec::new();
        file.take(OWNER_BYTES_MAX).read_to_end(&mut bytes).on("read", path)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let owner = Self::from_text(&text);
        Ok(Some((text, owner)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn this_process_is_alive_and_a_reused_pid_is_not() {
        let mut process = Process::current();
        assert_eq!(process.liveness(), Liveness::Alive);
        process.started_ticks += 1;
        assert_eq!(process.liveness(), Liveness::Dead);
        process.boot = "another".into();
        assert_eq!(process.liveness(), Liveness::Unknown);
    }

    #[test]
    fn an_owner_is_read_back_and_a_torn_one_is_not() {
        let owner =
            Owner { process: Process::current(), epoch: 3, renewals: 9, synced: 4711, released: false };
        let text = owner.to_text();
        assert_eq!(Owner::from_text(&text), Some(owner));
        for end in 0..text.len() - 1 {
            assert_eq!(Owner::from_text(&text[..end]), None, "{end}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text: String) {
            let _ = Owner::from_text(&text);
        }
    }
}
