//! `--array 1-1000:3%50`: from what a person writes to labels. Used by the argument parser and for task lists in `cancel`.

use crate::limits::LABEL_PAIRS_MAX;
use pf_protocol::Ranges;
use pf_protocol::job::ArraySpec;
use pf_protocol::limits::JOB_TASKS_MAX;
use std::str::FromStr;

/// An array as given: labels, and how many tasks of it may run at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    /// Labels of the tasks.
    pub spec: ArraySpec,
    /// How many tasks.
    pub count: u32,
    /// The `%N` at its end.
    pub max_running: Option<u32>,
}

/// Why a text is not an array.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArrayError {
    /// A part does not look like one.
    #[error("{0:?} is not N, FIRST-LAST or FIRST-LAST:STEP")]
    Part(String),
    /// A number is not one, or too large.
    #[error("{0:?} is not a number from 0 to 4294967295")]
    Number(String),
    /// A range that runs backwards.
    #[error("the range {0}-{1} runs backwards")]
    Backwards(u32, u32),
    /// A step of 0.
    #[error("a step must be at least 1")]
    Step,
    /// `%0`.
    #[error("%N must be at least 1: at least one task must be able to run")]
    NoneAtOnce,
    /// The same label twice.
    #[error("label {0} is there twice")]
    Twice(u32),
    /// Too many tasks.
    #[error("{0} tasks, the limit of one job is {JOB_TASKS_MAX}")]
    TooMany(u64),
    /// Too many separate ranges.
    #[error("more than {LABEL_PAIRS_MAX} separate labels in a list; give them by --each-line")]
    TooManyPairs,
}

fn number(text: &str) -> Result<u32, ArrayError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| ArrayError::Number(text.into()))
}

/// One part of the list: first, last, step.
fn part(text: &str) -> Result<(u32, u32, u32), ArrayError> {
    if text.is_empty() {
        return Err(ArrayError::Part(text.into()));
    }
    let (range, step) = match text.split_once(':') {
        Some((range, step)) if range.contains('-') => (range, number(step)?),
        Some(_) => return Err(ArrayError::Part(text.into())),
        None => (text, 1),
    };
    if step == 0 {
        return Err(ArrayError::Step);
    }
    let (first, last) = match range.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(range)?, number(range)?),
    };
    if last < first {
        return Err(ArrayError::Backwards(first, last));
    }
    // The last label is the last one that the step reaches.
    Ok((first, last - (last - first) % step, step))
}

/// A list of labels without `%`: `1,5,9-12`.
pub fn labels(text: &str) -> Result<Ranges, ArrayError> {
    let mut set = Ranges::new();
    let mut expected = 0u64;
    for (first, last, step) in text.split(',').map(part).collect::<Result<Vec<_>, _>>()? {
        let count = u64::from((last - first) / step) + 1;
        expected += count;
        if expected > u64::from(JOB_TASKS_MAX) {
            return Err(ArrayError::TooMany(expected));
        }
        if step == 1 {
            set.insert_range(first, count as u32);
        } else if count as usize > LABEL_PAIRS_MAX {
            return Err(ArrayError::TooManyPairs);
        } else {
            (first..=last).step_by(step as usize).for_each(|label| set.insert(label));
        }
        if set.len() != expected {
            return Err(ArrayError::Twice(first));
        }
        if set.pairs().len() > LABEL_PAIRS_MAX {
            return Err(ArrayError::TooManyPairs);
        }
    }
    Ok(set)
}

impl FromStr for Array {
    type Err = ArrayError;

    fn from_str(text: &str) -> Result<Self, ArrayError> {
        let (list, max_running) = match text.split_once('%') {
            Some((list, most)) => (list, Some(number(most)?)),
            None => (text, None),
        };
        if max_running == Some(0) {
            return Err(ArrayError::NoneAtOnce);
        }
        if !list.contains(',') {
            let (first, last, step) = part(list)?;
            let count = u64::from((last - first) / step) + 1;
            if count > u64::from(JOB_TASKS_MAX) {
                return Err(ArrayError::TooMany(count));
            }
            let spec = ArraySpec { first, step, labels: Ranges::new() };
            return Ok(Array { spec, count: count as u32, max_running });
        }
        let labels = labels(list)?;
        let count = labels.len() as u32;
        Ok(Array { spec: ArraySpec { first: 0, step: 1, labels }, count, max_running })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(text: &str) -> Vec<u64> {
        let array: Array = text.parse().expect(text);
        (0..array.count).map(|p| array.spec.label(p)).collect()
    }

    #[test]
    fn arrays_as_people_write_them() {
        assert_eq!(all("7"), [7]);
        assert_eq!(all("1-4"), [1, 2, 3, 4]);
        assert_eq!(all("1-10:3%50"), [1, 4, 7, 10]);
        assert_eq!(all("1-9:3"), [1, 4, 7]);
        assert_eq!(all("9-12,1,5"), [1, 5, 9, 10, 11, 12]);
        assert_eq!(all("0-6:3,10"), [0, 3, 6, 10]);
        assert_eq!("1-1000:3%50".parse::<Array>().map(|a| a.max_running), Ok(Some(50)));
    }

    #[test]
    fn what_is_no_array_says_why() {
        let error = |text: &str| text.parse::<Array>().unwrap_err().to_string();
        insta::assert_snapshot!(
            ["", "x", "1-", "-3", "5-1", "1-5:0", "1-5%0", "1,1", "1-5,3", "1:2", "1-2-3", "+1", "0-100000000",
             "1-4294967296", "1,,2"].map(|t| format!("{t:14} {}", error(t))).join("\n"), @r#"
                       "" is not N, FIRST-LAST or FIRST-LAST:STEP
        x              "x" is not a number from 0 to 4294967295
        1-             "" is not a number from 0 to 4294967295
        -3             "" is not a number from 0 to 4294967295
        5-1            the range 5-1 runs backwards
        1-5:0          a step must be at least 1
        1-5%0          %N must be at least 1: at least one task must be able to run
        1,1            label 1 is there twice
        1-5,3          label 3 is there twice
        1:2            "1:2" is not N, FIRST-LAST or FIRST-LAST:STEP
        1-2-3          "2-3" is not a number from 0 to 4294967295
        +1             "+1" is not a number from 0 to 4294967295
        0-100000000    100000001 tasks, the limit of one job is 100000000
        1-4294967296   "4294967296" is not a number from 0 to 4294967295
        1,,2           "" is not N, FIRST-LAST or FIRST-LAST:STEP
        "#);
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in "[0-9,:%x -]{0,24}") {
            if let Ok(array) = text.parse::<Array>() {
                prop_assert!(array.count >= 1);
                // Every position has a label, and the label finds its position again.
                for p in [0, array.count / 2, array.count - 1] {
                    prop_assert_eq!(array.spec.position(array.spec.label(p)), Some(p));
                }
            }
        }

        #[test]
        fn a_range_has_the_labels_that_a_loop_has(first in 0u32..1000, len in 0u32..300, step in 1u32..20) {
            let last = first + len;
            let expected: Vec<u64> = (first..=last).step_by(step as usize).map(u64::from).collect();
            prop_assert_eq!(all(&format!("{first}-{last}:{step}")), expected.clone());
            prop_assert_eq!(all(&format!("{first}-{last}:{step},99999")), [expected, vec![99999]].concat());
        }
    }
}
