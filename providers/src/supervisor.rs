//! The supervisor: the part of the batch script that runs the pilot, in POSIX sh. It passes signals on, waits, and writes how the pilot
//! ended to a file, also when the pilot was killed with SIGKILL; the relay reads that file when the scheduler does not know (any more).
//!
//! `relay/tests/supervisor.rs` runs it under the shells that there are.

use crate::script::{END, PILOT_LOG, quoted};
use pf_protocol::report::BlockEnd;

/// What comes before the setup lines: from here on, whatever happens is written down. The trap of EXIT comes last: bash runs it also
/// when a signal without a trap ends it, with an exit code of its own. Some batch systems give no PATH at all, which a shell makes up for and the programs
/// that it starts do not.
pub(crate) fn before_setup(dir: &str) -> String {
    let end = quoted(&format!("{dir}/{END}"));
    format!(
        r#"end={end}
PATH=${{PATH:+$PATH:}}/usr/bin:/bin
export PATH
rm -f "$end"
pilot='' told=''
finish() {{
    code=$?
    trap '' TERM INT HUP USR1 USR2
    trap - EXIT
    if [ "$code" -gt 128 ]; then how="signal $((code - 128))"; else how="code $code"; fi
    printf '%s\n' "$how" >"$end.new" && mv "$end.new" "$end"
    exit "$code"
}}
pass() {{
    told=$1
    [ -z "$pilot" ] || kill -s "$1" "$pilot" 2>/dev/null
}}
trap 'pass TERM' TERM INT HUP
trap 'pass USR1' USR1
trap 'pass USR2' USR2
trap finish EXIT
"#
    )
}

/// What comes after them. A shell's `wait` is cut short by a signal that has a trap: then it is asked again; a process that was waited for
/// already is 127 to some shells, and one that a signal hit before it became the pilot is -1 to bash 5.2: both tell nothing new.
pub(crate) fn after_setup(dir: &str, program: &str) -> String {
    let ticket = quoted(&format!("{dir}/ticket.json"));
    let (dir, program) = (quoted(dir), quoted(program));
    format!(
        r#"
set +eu
cd {dir} || exit 1
[ -z "$told" ] || exit 143
{program} pilot --ticket {ticket} >>{PILOT_LOG} 2>&1 &
pilot=$!
[ -z "$told" ] || kill -s "$told" "$pilot" 2>/dev/null
code=127
while :; do
    told=''
    wait "$pilot"
    got=$?
    case $got in -* | 127) ;; *) code=$got ;; esac
    [ -n "$told" ] || break
done
exit "$code"
"#
    )
}

/// How a block ended whose script ended with this code: a shell adds 128 to the signal that ended what it waited for.
pub(crate) fn end_of_code(code: i32) -> BlockEnd {
    match code {
        0 => BlockEnd::Completed,
        129..=159 => BlockEnd::Signal(code - 128),
        _ => BlockEnd::Failed(code),
    }
}

/// What the supervisor wrote: how the pilot ended. None if it is not the supervisor's.
#[must_use]
pub fn end(text: &str) -> Option<BlockEnd> {
    let (word, number) = text.strip_suffix('\n')?.split_once(' ')?;
    match (word, number.parse().ok()?) {
        ("code", 0) => Some(BlockEnd::Completed),
        ("code", code @ 1..=255) => Some(BlockEnd::Failed(code)),
        ("signal", signal @ 1..=127) => Some(BlockEnd::Signal(signal)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ends_are_read_and_the_rest_is_not_guessed() {
        assert_eq!(end("code 0\n"), Some(BlockEnd::Completed));
        assert_eq!(end("code 3\n"), Some(BlockEnd::Failed(3)));
        assert_eq!(end("signal 9\n"), Some(BlockEnd::Signal(9)));
        for bad in ["", "code 0", "code\n", "code 999\n", "signal 0\n", "code 1\ncode 2\n", "what 1\n"] {
            assert_eq!(end(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,40}\n?") {
            let _ = end(&text);
        }
    }
}
