//! What schedulers say: every parser of every provider and dialect, and those of `pf site`. The first byte is an exit code; a zero byte divides standard output from
//! standard error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pf_providers::{KnownBlock, NAMES, Output, ProviderConfig, dialect, dialects, provider, supervisor};
use pf_site_profiles::survey::{self, Answer, SCHEDULERS};

fuzz_target!(|data: &[u8]| {
    let Some((exit, text)) = data.split_first() else { return };
    let mut streams = text.splitn(2, |byte| *byte == 0).map(|s| String::from_utf8_lossy(s).into_owned());
    let (stdout, stderr) = (streams.next().unwrap_or_default(), streams.next().unwrap_or_default());
    let output = Output { exit: (*exit != 254).then_some(i32::from(*exit)), stdout, stderr };
    for name in NAMES {
        let _ = dialect(name, &output);
        for spoken in dialects(name).unwrap_or_default() {
            read(name, spoken, &output);
        }
    }
    let _ = supervisor::end(&output.stdout);
    let answer = Answer { exit: output.exit, stdout: output.stdout, stderr: output.stderr };
    for scheduler in SCHEDULERS {
        let _ = survey::read(
            scheduler,
            &[answer.clone(), answer.clone(), answer.clone(), answer.clone(), answer.clone()],
        );
    }
});

fn read(name: &str, dialect: &str, output: &Output) {
    let config =
        ProviderConfig { name: name.into(), dialect: Some(dialect.into()), ..ProviderConfig::default() };
    let provider = provider(&config).expect("a provider that is listed");
    if let Ok(id) = provider.submitted(output) {
        is_word(&id);
    }
    provider.observed(output).iter().flatten().for_each(|seen| is_word(&seen.id));
    let _ = provider.cancelled(output);
    for id in [None, Some("7".to_string()), Some("7.pbshead".to_string())] {
        let block = KnownBlock { name: "pf-x-b1-0badcafe".into(), id, dir: "/d".into() };
        for step in 0..=provider.lookup(&block).len() {
            let found = provider.looked_up(&block, step, output).ok().flatten();
            found.iter().for_each(|seen| is_word(&seen.id));
        }
    }
}

/// It will stand on a command line, where it must be an operand, and one.
fn is_word(id: &str) {
    assert!(!id.is_empty() && !id.starts_with('-') && !id.contains(char::is_whitespace), "{id:?}");
}
