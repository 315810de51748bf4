//! The batch script, one for all schedulers but for its directives: those, the profile's setup lines, then the supervisor of
//! [`supervisor`](crate::supervisor). Each provider calls [`block_script`]; the relay reads the files that are named here.

use crate::supervisor;
use crate::{BlockRequest, ProviderError};

/// The script's name in the block's folder.
pub const SCRIPT: &str = "block.sh";

/// What the script itself prints, in the block's folder: the directives send it there.
pub const BLOCK_LOG: &str = "block.log";

/// What the pilot prints, in the block's folder.
pub const PILOT_LOG: &str = "pilot.log";

/// Written by the supervisor into the block's folder: how the pilot ended.
pub const END: &str = "end";

/// The script of a block. `directives` are whole lines (`#SBATCH --nodes=2`), and after them commands that are the scheduler's own business.
///
/// # Errors
/// [`ProviderError::BadValue`] for a line that would be two.
pub fn block_script(directives: &[String], request: &BlockRequest) -> Result<String, ProviderError> {
    let setup = &request.asks.setup;
    // `module` and the like are functions of a login shell; without them nothing of the user's start-up files is read from slow disks.
    let shell = if setup.is_empty() { "#!/bin/sh" } else { "#!/bin/bash -l" };
    let mut lines = vec![shell.to_string()];
    lines.extend_from_slice(directives);
    lines.push(format!("\n# Block {} of Pilotfish: waits for one process, the pilot.", request.name));
    lines.push(supervisor::before_setup(&request.dir));
    for line in setup {
        lines.push(one_line("setup", line)?.into());
    }
    lines.push(supervisor::after_setup(&request.dir, &request.program));
    for line in lines.iter().take(directives.len() + 1) {
        one_line("options", line)?;
    }
    Ok(lines.join("\n"))
}

/// `text`, if it cannot become two lines of the script.
///
/// # Errors
/// [`ProviderError::BadValue`].
pub fn one_line<'a>(key: &'static str, text: &'a str) -> Result<&'a str, ProviderError> {
    if text.contains(|c: char| c.is_control() && c != '\t') {
        return Err(ProviderError::BadValue { key, value: text.into() });
    }
    Ok(text)
}

/// `value`, if a scheduler's option can be made of it as it is: one word that cannot be read as another option.
///
/// # Errors
/// [`ProviderError::BadValue`].
pub fn one_word<'a>(key: &'static str, value: &'a str) -> Result<&'a str, ProviderError> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'' | '\\' | '`' | '$');
    if value.is_empty() || value.starts_with('-') || value.contains(bad) {
        return Err(ProviderError::BadValue { key, value: value.into() });
    }
    Ok(value)
}

/// The user's own directives, if none of them is an option that only the provider may give: `ours`, as words (`-N`, `--jobname`). `attached`
/// says that the value of an option of one letter may follow it at once (`-Nx`); LSF has options of several letters instead (`-Jd`).
///
/// # Errors
/// [`ProviderError::BadValue`].
pub fn own_options<'a>(
    options: &'a [String],
    ours: &[&str],
    attached: bool,
) -> Result<&'a [String], ProviderError> {
    let is = |word: &str, option: &str| match word.strip_prefix(option) {
        Some(rest) => rest.is_empty() || rest.starts_with('=') || (attached && option.len() == 2),
        None => false,
    };
    let forbidden = |line: &&String| line.split_whitespace().any(|word| ours.iter().any(|o| is(word, o)));
    match options.iter().find(forbidden) {
        Some(line) => Err(ProviderError::BadValue { key: "options", value: line.clone() }),
        None => Ok(options),
    }
}

/// `text` as one word of a POSIX shell.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_two_lines_is_refused() {
        let mut request = BlockRequest { dir: "/d".into(), program: "/pf".into(), ..BlockRequest::default() };
        let script = block_script(&["#SBATCH --nodes=1".into()], &request).unwrap();
        assert!(script.starts_with("#!/bin/sh\n#SBATCH --nodes=1\n"), "{script}");
        request.asks.setup = vec!["module load a".into()];
        assert!(block_script(&[], &request).unwrap().starts_with("#!/bin/bash -l\n"));
        request.asks.setup = vec!["a\nrm -rf b".into()];
        assert!(block_script(&[], &request).is_err());
        request.asks.setup = Vec::new();
        assert!(block_script(&["#SBATCH --comment=a\nb".into()], &request).is_err());
    }

    #[test]
    fn options_that_would_hide_a_block_are_refused() {
        let own = |line: &str, ours: &[&str], attached| own_options(&[line.into()], ours, attached).is_ok();
        assert!(!own("-q x -N y", &["-N"], true) && !own("-Ny", &["-N"], true));
        assert!(own("-l select=1", &["-N"], true) && own("-n 4", &["-N"], true));
        assert!(!own("-J y", &["-J"], false) && own("-Jd words", &["-J"], false));
        assert!(!own("--jobname=y", &["--jobname"], true) && own("--jobnames", &["--jobname"], true));
    }

    #[test]
    fn words_are_quoted_or_refused() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert!(one_word("queue", "debug,batch").is_ok());
        for bad in ["", "a b", "-x", "a\nb", "$(x)"] {
            assert!(one_word("queue", bad).is_err(), "{bad:?}");
        }
    }
}
