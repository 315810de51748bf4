//! The batch script and the commands of each provider, as snapshots.

use pf_providers::{Asks, BlockRequest, KnownBlock, Plan, Provider, ProviderConfig, ProviderError, provider};

fn slurm() -> Box<dyn Provider> {
    let config = ProviderConfig { name: "slurm".into(), user: "ann".into(), ..ProviderConfig::default() };
    provider(&config).expect("a provider")
}

fn request(asks: Asks) -> BlockRequest {
    BlockRequest {
        name: "pf-here-b7-0badcafe".into(),
        dir: "/home/ann/pf/blocks/here/b7".into(),
        program: "/home/ann/pf/bin/c0ffee/pf".into(),
        nodes: 4,
        walltime_ms: 25 * 3_600_000,
        exclude: Vec::new(),
        asks,
    }
}

/// Script, command, and the variables that it must not see.
fn words(plan: &Plan) -> String {
    let script = plan.script.as_ref().map(|(name, text)| format!("# {name}\n{text}\n")).unwrap_or_default();
    format!("{script}$ {}\nwithout {}", plan.argv.join(" "), plan.unset.join(" "))
}

#[test]
fn slurm_with_nothing_asked_for() {
    insta::assert_snapshot!(words(&slurm().submit(&request(Asks::default())).expect("a plan")));
}

#[test]
fn slurm_with_everything_asked_for() {
    let text = |s: &str| Some(s.to_string());
    let asks = Asks {
        queue: text("batch,debug"),
        account: text("m1234"),
        qos: text("premium"),
        reservation: text("maint"),
        constraint: text("gpu&hbm80g"),
        cores_per_node: Some(64),
        gpus_per_node: Some(4),
        memory_per_node_mib: Some(240_000),
        exclusive: true,
        options: vec!["--mail-type=END,FAIL".into(), "--licenses=scratch,cfs".into()],
        setup: vec!["module load python".into(), "export A='b c'".into()],
    };
    let exclude = vec!["n2".into(), "n9".into()];
    let request = BlockRequest { exclude, walltime_ms: 90_000, ..request(asks) };
    insta::assert_snapshot!(words(&slurm().submit(&request).expect("a plan")));
}

#[test]
fn slurm_commands() {
    let known = KnownBlock { name: "pf-here-b7-0badcafe".into(), id: Some("42".into()), dir: "/d".into() };
    let unnamed = KnownBlock { id: None, ..known.clone() };
    let mut plans = vec![slurm().status(std::slice::from_ref(&known))];
    for block in [&known, &unnamed] {
        plans.extend(slurm().lookup(block));
        plans.extend((0..2).map(|round| slurm().cancel(block, round).expect("a plan")));
    }
    insta::assert_snapshot!(plans.iter().map(words).collect::<Vec<_>>().join("\n"));
}

#[test]
fn what_would_break_out_of_a_directive_is_refused_by_its_key() {
    let queue = Asks { queue: Some("debug\nrm -rf /".into()), ..Asks::default() };
    let error = slurm().submit(&request(queue)).expect_err("a bad value");
    assert_eq!(error, ProviderError::BadValue { key: "queue", value: "debug\nrm -rf /".into() });
    let options = Asks { options: vec!["--comment=a\necho".into()], ..Asks::default() };
    assert!(matches!(slurm().submit(&request(options)), Err(ProviderError::BadValue { key: "options", .. })));
}
