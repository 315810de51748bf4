//! Which machine this is, from environment and host name. Called by `pf site detect`, `check` and `new`.

use crate::profile::Profile;
use std::collections::BTreeMap;

/// Why `profile` is this machine's, if it is: the variable or the pattern that says so.
#[must_use]
pub fn reason(profile: &Profile, env: &BTreeMap<String, String>, hosts: &[String]) -> Option<String> {
    let detect = &profile.detect;
    if let Some((name, value)) = detect.env.iter().find(|(name, value)| env.get(*name) == Some(value)) {
        return Some(format!("{name}={value}"));
    }
    let pairs = detect.hosts.iter().flat_map(|pattern| hosts.iter().map(move |host| (pattern, host)));
    let mut matching = pairs.filter(|(pattern, host)| matches(pattern, host));
    matching.next().map(|(pattern, host)| format!("host {host} is {pattern}"))
}

/// Whether `*` can be filled so that `pattern` is `text`. Letter case does not count, as in host names.
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.to_ascii_lowercase(), text.to_ascii_lowercase());
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut left) = text.strip_prefix(first) else { return false };
    let parts: Vec<&str> = rest.split('*').collect();
    let Some((last, middle)) = parts.split_last() else { return true };
    for part in middle {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.len() >= last.len() && left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, text) in
            [("a", "A"), ("*", ""), ("*.x.org", "login1.x.org"), ("l*-*.org", "l1-2-3.org"), ("a*b*a", "aba")]
        {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("a", "ab"), ("*.x.org", "x.org"), ("a*a", "a"), ("ab*bc", "abc"), ("*.x.org", "y.x.org.evil")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn what_a_star_is_replaced_by_matches(a in "[a-c.]{0,4}", b in "[a-c.]{0,4}", c in "[a-c.]{0,4}", x in "[a-c.]{0,6}", y in "[a-c.]{0,6}") {
            let matched = matches(&format!("{a}*{b}*{c}"), &format!("{a}{x}{b}{y}{c}"));
            prop_assert!(matched);
        }
    }
}
