//! Slurm's compressed list of nodes, `nid[000001-000003,000010],login1`: expands it. [`crate::nodelist`] calls it.
//!
//! The grammar is what `scontrol show hostnames` of Slurm 22.05 took and refused when tried: names are set apart by commas or blanks,
//! brackets hold numbers and ranges, the digits of a range's low end give the width, and several brackets in a name multiply out
//! with the last one running fastest. A range that falls, an empty one, and a bracket left open are refused.

use crate::limits::{NODE_DIGITS_MAX, NODES_MAX};

/// Why a list cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostlistError {
    /// A bracket is open or closed without its other half.
    #[error("brackets do not match in {0:?}")]
    Brackets(String),
    /// Not a number nor a range that rises.
    #[error("{range:?} is no range of numbers in {name:?}")]
    Range {
        /// What stands between commas.
        range: String,
        /// The name around it.
        name: String,
    },
    /// More than a block can have.
    #[error("more than {NODES_MAX} nodes in {0:?}")]
    TooMany(String),
}

/// All names of a list, in its order.
///
/// # Errors
/// When it is not such a list, or of more than [`NODES_MAX`] names.
pub fn expand(list: &str) -> Result<Vec<String>, HostlistError> {
    let mut names = Vec::new();
    for name in split(list)? {
        for part in expand_one(name)? {
            if names.len() == NODES_MAX {
                return Err(HostlistError::TooMany(shown(list)));
            }
            names.push(part);
        }
    }
    Ok(names)
}

/// Cuts at commas and blanks outside of brackets.
fn split(list: &str) -> Result<Vec<&str>, HostlistError> {
    let (mut open, mut from, mut names) = (false, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '[' | ']' if open == (c == '[') => return Err(HostlistError::Brackets(shown(list))),
            '[' | ']' => open = c == '[',
            _ if !open && (c == ',' || c.is_whitespace()) => {
                names.push(&list[from..at]);
                from = at + c.len_utf8();
            }
            _ => {}
        }
    }
    if open {
        return Err(HostlistError::Brackets(shown(list)));
    }
    names.push(&list[from..]);
    names.retain(|name| !name.is_empty());
    Ok(names)
}

/// One name with any number of brackets.
fn expand_one(name: &str) -> Result<Vec<String>, HostlistError> {
    let mut names = vec![String::new()];
    let mut rest = name;
    while let Some((before, after)) = rest.split_once('[') {
        let (inside, after) = after.split_once(']').ok_or_else(|| HostlistError::Brackets(shown(name)))?;
        let numbers = numbers(inside, name)?;
        if names.len().saturating_mul(numbers.len()) > NODES_MAX {
            return Err(HostlistError::TooMany(shown(name)));
        }
        let longer = |start: &String| -> Vec<String> {
            numbers.iter().map(|number| format!("{start}{before}{number}")).collect()
        };
        names = names.iter().flat_map(longer).collect();
        rest = after;
    }
    for name in &mut names {
        name.push_str(rest);
    }
    Ok(names)
}

/// The numbers between two brackets, padded as written.
fn numbers(inside: &str, name: &str) -> Result<Vec<String>, HostlistError> {
    let mut numbers = Vec::new();
    for range in inside.split(',') {
        let wrong = || HostlistError::Range { range: shown(range), name: shown(name) };
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        let width = low.len();
        let (low, high) = (number(low).ok_or_else(wrong)?, number(high).ok_or_else(wrong)?);
        if low > high {
            return Err(wrong());
        }
        if high - low >= NODES_MAX as u64 || numbers.len() + (high - low) as usize >= NODES_MAX {
            return Err(HostlistError::TooMany(shown(name)));
        }
        numbers.extend((low..=high).map(|n| format!("{n:0width$}")));
    }
    Ok(numbers)
}

fn number(digits: &str) -> Option<u64> {
    let plain =
        !digits.is_empty() && digits.len() <= NODE_DIGITS_MAX && digits.bytes().all(|b| b.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

/// The start of a list, for a message.
fn shown(list: &str) -> String {
    list.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(list: &str) -> String {
        expand(list).map_or_else(|e| format!("error: {e}"), |names| names.join(" "))
    }

    #[test]
    fn lists_are_read_as_scontrol_reads_them() {
        // Left: what was asked; right: what `scontrol show hostnames` of Slurm 22.05.8 answered.
        for (list, expected) in [
            ("n[2-3]", "n2 n3"),
            ("n[01-3]", "n01 n02 n03"),
            ("n[9-10]", "n9 n10"),
            ("n[00-1]", "n00 n01"),
            ("n[1-03]", "n1 n2 n3"),
            ("nid[000001-000002,000010]", "nid000001 nid000002 nid000010"),
            ("r[0-1]n[0-1]", "r0n0 r0n1 r1n0 r1n1"),
            ("n[1-2][3-4]", "n13 n14 n23 n24"),
            ("a[1-2],b[3],login1", "a1 a2 b3 login1"),
            ("n[1,1-2]", "n1 n1 n2"),
            ("a,,b", "a b"),
            ("n1 n2", "n1 n2"),
            ("[1-2]", "1 2"),
            ("", ""),
        ] {
            assert_eq!(names(list), expected, "{list}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused_by_name() {
        for list in ["n[3-1]", "n[]", "n[a-b]", "n[-3]", "n[1--3]", "n[,1]", "n[0x1-0x2]", "n[+1-2]"] {
            assert!(names(list).contains("is no range of numbers"), "{list}: {}", names(list));
        }
        for list in ["n[1-2", "n1]", "n[1-2]]", "n[[1-2]]"] {
            assert!(names(list).contains("brackets do not match"), "{list}: {}", names(list));
        }
        for list in ["n[1-70000]", "n[0-999]m[0-999]", "n[1-65535],m", "n[1-60000,1-60000]"] {
            assert!(names(list).contains("more than 65535 nodes"), "{list}: {}", names(list));
        }
        assert_eq!(expand("n[1-65535]").unwrap().len(), NODES_MAX);
    }

    proptest! {
        #[test]
        fn any_text_is_a_list_or_an_error(list in "\\PC{0,60}|[a-c0-9,\\[\\]-]{0,40}") {
            if let Ok(names) = expand(&list) {
                prop_assert!(names.len() <= NODES_MAX);
                prop_assert!(names.iter().all(|name| !name.is_empty() && !name.contains(',')));
            }
        }

        #[test]
        fn ranges_have_all_their_numbers(low in 0u32..5_000, count in 1u32..300, width in 1usize..8) {
            let list = format!("x[{low:0width$}-{high}]", high = low + count - 1);
            let expected: Vec<String> = (low..low + count).map(|n| format!("x{n:0width$}")).collect();
            prop_assert_eq!(expand(&list).unwrap(), expected);
        }
    }
}
