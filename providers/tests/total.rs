//! No words of a scheduler bring a provider down, whatever they are.

use pf_providers::{KnownBlock, NAMES, Output, ProviderConfig, provider};
use proptest::prelude::*;

/// Bytes of all kinds, and lines that look like a scheduler's.
fn words() -> impl Strategy<Value = String> {
    let any = proptest::collection::vec(any::<u8>(), 0..400);
    prop_oneof![
        any.prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        "([0-9|:;,=_. A-Za-z()\\[\\]-]{0,60}\n){0,8}",
        "(JobId=[0-9]{1,3} JobName=b JobState=[A-Z_]{0,12} Reason=[A-Za-z]{0,9} ExitCode=[0-9]{0,12}:[0-9]{0,12}\n){0,3}",
        "([0-9]{1,12}\\|[A-Z_ ]{0,12}\\|-?[0-9:]{0,12}\\|[0-9:-]{0,24}\\|[0-9]{0,12}\\|[A-Za-z,]{0,30}\\|b\\|\n){0,4}",
    ]
}

proptest! {
    #[test]
    fn any_words_are_survived(stdout in words(), stderr in words(), exit in proptest::option::of(-1i32..256), id in "[0-9]{0,5}") {
        for name in NAMES {
            let config = ProviderConfig { name: name.into(), user: "u".into(), ..ProviderConfig::default() };
            let provider = provider(&config).expect("a provider");
            let output = Output { exit, stdout: stdout.clone(), stderr: stderr.clone() };
            let _ = provider.submitted(&output);
            let _ = provider.observed(&output);
            let _ = provider.cancelled(&output);
            for id in [None, Some(id.clone())] {
                let block = KnownBlock { name: "b".into(), id, dir: "/d".into() };
                for step in 0..=provider.lookup(&block).len() {
                    let _ = provider.looked_up(&block, step, &output);
                }
            }
        }
    }
}
