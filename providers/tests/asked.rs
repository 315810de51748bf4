//! What each dialect is asked for, as a snapshot for each: argv and directives for every kind of request. (The rest of the
//! script is the same for all: `scripts.rs`.)

#![expect(clippy::unwrap_used, reason = "a test ends where its own preparations fail")]

use pf_providers::{Asks, BlockRequest, Plan, Provider, ProviderConfig, ProviderError, provider};
use std::fmt::Write;

const DIALECTS: [(&str, &str); 6] = [
    ("pbs", "openpbs"),
    ("pbs", "torque"),
    ("lsf", "ibm"),
    ("lsf", "csm"),
    ("lsf", "openlava"),
    ("cobalt", ""),
];

fn speaking(name: &str, dialect: &str) -> Box<dyn Provider> {
    let config = ProviderConfig {
        name: name.into(),
        dialect: Some(dialect.into()),
        program: "/s/bin/pf".into(),
        user: "ada".into(),
        ends_with: None,
    };
    provider(&config).unwrap()
}

fn plain() -> BlockRequest {
    BlockRequest {
        name: "pf-polar-b7-0badcafe".into(),
        dir: "/s/blocks/polar/b7".into(),
        program: "/s/bin/pf".into(),
        nodes: 2,
        walltime_ms: 3_600_000,
        exclude: Vec::new(),
        asks: Asks::default(),
    }
}

/// Every kind of request: what it changes.
fn kinds() -> Vec<(&'static str, BlockRequest)> {
    let text = |t: &str| Some(t.to_string());
    let asks = |asks: Asks| BlockRequest { asks, ..plain() };
    vec![
        ("nothing but nodes and walltime", plain()),
        ("one node", BlockRequest { nodes: 1, ..plain() }),
        ("a walltime of many days", BlockRequest { walltime_ms: 360_000_001, ..plain() }),
        ("a walltime below a minute", BlockRequest { walltime_ms: 1_500, ..plain() }),
        ("queue", asks(Asks { queue: text("debug"), ..Asks::default() })),
        ("account", asks(Asks { account: text("ABC123"), ..Asks::default() })),
        ("qos", asks(Asks { qos: text("high"), ..Asks::default() })),
        (
            "reservation, which comes before a queue",
            asks(Asks { reservation: text("R123"), queue: text("debug"), ..Asks::default() }),
        ),
        ("constraint", asks(Asks { constraint: text("system=polaris"), ..Asks::default() })),
        ("cores on each node", asks(Asks { cores_per_node: Some(64), ..Asks::default() })),
        ("GPUs on each node", asks(Asks { gpus_per_node: Some(4), ..Asks::default() })),
        ("memory on each node", asks(Asks { memory_per_node_mib: Some(131_072), ..Asks::default() })),
        ("whole nodes", asks(Asks { exclusive: true, ..Asks::default() })),
        (
            "all of a node's shape",
            asks(Asks {
                cores_per_node: Some(64),
                gpus_per_node: Some(4),
                memory_per_node_mib: Some(1_024),
                exclusive: true,
                constraint: text("mem"),
                ..Asks::default()
            }),
        ),
        (
            "nodes that it must not get",
            BlockRequest { exclude: vec!["n1".into(), "gpu-07.local".into()], ..plain() },
        ),
        (
            "the user's own lines",
            asks(Asks {
                options: vec!["-l filesystems=home:eagle".into(), "-M ada@x".into()],
                ..Asks::default()
            }),
        ),
        (
            "attributes twice",
            asks(Asks {
                constraint: text("mcdram=flat"),
                options: vec!["--attrs filesystems=home,eagle".into(), "--attrs=ssds=required".into()],
                ..Asks::default()
            }),
        ),
    ]
}

fn shown(result: Result<Plan, ProviderError>) -> String {
    let plan = match result {
        Ok(plan) => plan,
        Err(error) => return format!("    {error}\n"),
    };
    let mut text = format!("    $ {}", plan.argv.join(" "));
    let (name, script) = plan.script.unwrap();
    if plan.script_on_stdin {
        write!(text, " < {name}").unwrap();
    }
    text.push('\n');
    if !plan.unset.is_empty() {
        writeln!(text, "    without {}", plan.unset.join(" ")).unwrap();
    }
    for line in script.lines().skip(1).take_while(|l| l.starts_with('#')) {
        writeln!(text, "    {line}").unwrap();
    }
    text
}

#[test]
fn each_kind_of_request_in_each_dialect() {
    for (name, dialect) in DIALECTS {
        let provider = speaking(name, dialect);
        let mut text = String::new();
        for (kind, request) in kinds() {
            writeln!(text, "{kind}\n{}", shown(provider.submit(&request))).unwrap();
        }
        let file = format!("{name}{}{dialect}", if dialect.is_empty() { "" } else { "-" });
        insta::with_settings!({ omit_expression => true }, { insta::assert_snapshot!(file, text); });
    }
}

/// A setting that changed nothing would be an option that does nothing. Cobalt and CORAL machines give whole nodes, exclusive or not.
#[test]
fn every_setting_is_said_or_refused() {
    for (name, dialect) in DIALECTS {
        let provider = speaking(name, dialect);
        let said = |request: &BlockRequest| provider.submit(request).map(|plan| plan.script);
        for (kind, request) in kinds().into_iter().skip(1) {
            let whole = (name == "cobalt" || dialect == "csm") && kind == "whole nodes";
            assert_eq!(said(&request) == said(&plain()), whole, "{name} {dialect}: {kind}");
        }
    }
}

#[test]
fn what_would_break_out_of_a_directive_is_refused() {
    for (name, dialect) in DIALECTS {
        let provider = speaking(name, dialect);
        for bad in ["a b", "-q", "a\n#PBS -q b", "a\"b", "$(x)", ""] {
            for request in [
                BlockRequest { asks: Asks { queue: Some(bad.into()), ..Asks::default() }, ..plain() },
                BlockRequest { asks: Asks { account: Some(bad.into()), ..Asks::default() }, ..plain() },
                BlockRequest { name: bad.into(), ..plain() },
                BlockRequest { dir: format!("/s/{bad}\n"), ..plain() },
            ] {
                let refused = provider.submit(&request);
                assert!(
                    matches!(refused, Err(ProviderError::BadValue { .. })),
                    "{name} {dialect} {bad:?}: {refused:?}"
                );
            }
        }
        let lines = Asks { options: vec!["-q a\nrm -rf x".into()], ..Asks::default() };
        assert!(provider.submit(&BlockRequest { asks: lines, ..plain() }).is_err());
    }
    let own = |name: &str, dialect: &str, line: &str| {
        let asks = Asks { options: vec![line.into()], ..Asks::default() };
        speaking(name, dialect).submit(&BlockRequest { asks, ..plain() }).is_ok()
    };
    for line in ["-W block=true", "-Wblock=true", "-W umask=022,block=true", "-N x", "-Nx", "-I"] {
        assert!(!own("pbs", "openpbs", line), "{line}");
    }
    assert!(own("pbs", "openpbs", "-W umask=022,sandbox=PRIVATE"));
    assert!(!own("lsf", "openlava", "-Jx") && own("lsf", "ibm", "-Jd words"));
    assert!(!own("lsf", "ibm", "-pack file") && !own("lsf", "ibm", "-ISp") && own("lsf", "ibm", "-a esub"));
    assert!(!own("cobalt", "", "--interactive") && own("cobalt", "", "--env A=1"));
    // What schedulers make of a name.
    let named = |name: &str| BlockRequest { name: name.into(), ..plain() };
    assert!(speaking("pbs", "openpbs").submit(&named("1e5")).is_err());
    assert!(speaking("lsf", "ibm").submit(&named("a[1-3]")).is_err());
}
