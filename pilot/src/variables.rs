//! The environment of a task or worker: what all have in common is not copied for each. Used by the threads of `lanes`.

use crate::command::refused;
use pf_protocol::outcome::ErrorDetail;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// What all tasks of a manager have in common: each name with its whole entry, `NAME=value`.
#[derive(Debug)]
pub(crate) struct Common(Vec<(OsString, CString)>);

impl Common {
    /// Those of this process that `keep` wants.
    pub fn of_this_process(keep: impl Fn(&OsStr) -> bool) -> Self {
        let entries = std::env::vars_os().filter(|(name, _)| keep(name)).filter_map(|(name, value)| {
            let entry = entry(&name, &value).ok()?;
            Some((name, entry))
        });
        Common(entries.collect())
    }
}

/// See the module.
pub(crate) struct Variables<'a>(BTreeMap<Cow<'a, OsStr>, Cow<'a, CStr>>);

impl<'a> Variables<'a> {
    /// What is common.
    pub fn new(common: &'a Common) -> Self {
        let entries = common.0.iter().map(|(name, entry)| (name.as_os_str().into(), entry.as_c_str().into()));
        Variables(entries.collect())
    }

    /// None at all.
    pub fn none() -> Self {
        Variables(BTreeMap::new())
    }

    /// Sets one, or sets it anew.
    pub fn set(&mut self, name: impl Into<OsString>, value: impl AsRef<OsStr>) -> Result<(), ErrorDetail> {
        let name = name.into();
        let entry = entry(&name, value.as_ref())
            .map_err(|_| holds_nul(&format!("variable {}", name.to_string_lossy())))?;
        self.0.insert(name.into(), entry.into());
        Ok(())
    }

    /// Its value.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        let entry = self.0.get(OsStr::new(name))?;
        Some(OsStr::from_bytes(entry.to_bytes().get(name.len() + 1..)?))
    }

    /// As a new process gets them.
    pub fn entries(&self) -> Vec<&CStr> {
        self.0.values().map(AsRef::as_ref).collect()
    }
}

/// What the kernel cannot pass on.
pub(crate) fn holds_nul(what: &str) -> ErrorDetail {
    refused(format!("{what} holds a NUL byte"), "feed such items to standard input")
}

fn entry(name: &OsStr, value: &OsStr) -> Result<CString, std::ffi::NulError> {
    CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_stands_in_place_of_what_is_common() {
        let common = Common(vec![("A".into(), c"A=1".into()), ("B".into(), c"B=2".into())]);
        let mut variables = Variables::new(&common);
        variables.set("B", "x=y").unwrap();
        variables.set("C", "").unwrap();
        assert_eq!(variables.entries(), [c"A=1", c"B=x=y", c"C="]);
        assert_eq!(variables.get("B"), Some(OsStr::new("x=y")));
        assert_eq!((variables.get("C"), variables.get("D")), (Some(OsStr::new("")), None));
        let error = variables.set("E", OsStr::from_bytes(b"a\0b")).unwrap_err();
        assert_eq!(error.message, "variable E holds a NUL byte");
    }
}
