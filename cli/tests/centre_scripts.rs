//! The batch script of a block, as the site profile makes it, against the example in the centre's own documentation: every directive that the example has
//! for the machine's sake (account, queue, nodes, time, file systems, GPUs) is in ours, with the same value.

use pf_cli::config::{Config, Sources, Surroundings};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// An example and what an endpoint must say to ask for the same.
struct Example {
    profile: &'static str,
    /// The document.
    from: &'static str,
    /// Settings of the endpoint: account, size and time of the example.
    settings: &'static str,
    /// Its directives. Names, outputs, mails and numbers of ranks are left out: they belong to the program that it runs.
    directives: &'static [&'static str],
}

const EXAMPLES: &[Example] = &[
    Example {
        profile: "perlmutter",
        from: "docs.nersc.gov, \"Queues and Charges\" and the example job scripts: -A, -C, -q, -N and -t are given (their values here are ours)",
        settings: "account = \"m1234\"\nnodes_per_block = 2\nwalltime = \"30m\"",
        directives: &[
            "#SBATCH -A m1234",
            "#SBATCH -C cpu",
            "#SBATCH -q regular",
            "#SBATCH -t 00:30:00",
            "#SBATCH -N 2",
        ],
    },
    Example {
        profile: "frontier",
        from: "olcf/olcf-user-docs systems/frontier_user_guide.rst, Batch Scripts",
        settings: "account = \"ABC123\"\nnodes_per_block = 1024\nwalltime = \"1h\"",
        directives: &["#SBATCH -A ABC123", "#SBATCH -t 1:00:00", "#SBATCH -p batch", "#SBATCH -N 1024"],
    },
    Example {
        profile: "lumi",
        from: "Lumi-supercomputer/lumi-userguide docs/runjobs/scheduled-jobs/lumig-job.md, MPI-based job",
        settings: "account = \"project_1\"\nqueue = \"standard-g\"\nnodes_per_block = 16\ngpus_per_node = 8\nwalltime = \"36h\"",
        directives: &[
            "#SBATCH --partition=standard-g",
            "#SBATCH --nodes=16",
            "#SBATCH --gpus-per-node=8",
            "#SBATCH --time=1-12:00:00",
            "#SBATCH --account=project_1",
        ],
    },
    Example {
        profile: "stampede3",
        from: "TACC/TACC-Docs, Stampede3 user guide, the sample job script for MPI on SPR nodes",
        settings: "account = \"myproject\"\nqueue = \"spr\"\nnodes_per_block = 4\nwalltime = \"90m\"",
        directives: &["#SBATCH -p spr", "#SBATCH -N 4", "#SBATCH -t 01:30:00", "#SBATCH -A myproject"],
    },
    Example {
        profile: "polaris",
        from: "argonne-lcf/user-guides docs/running-jobs/example-job-scripts.md, GPU MPI Example",
        settings: "account = \"Catalyst\"\nnodes_per_block = 2\nwalltime = \"30m\"",
        directives: &[
            "#PBS -l select=2:system=polaris",
            "#PBS -l place=scatter",
            "#PBS -l walltime=0:30:00",
            "#PBS -l filesystems=home:eagle",
            "#PBS -q debug",
            "#PBS -A Catalyst",
        ],
    },
    Example {
        profile: "aurora",
        from: "argonne-lcf/user-guides docs/aurora, running jobs: select, place=scatter, filesystems=home:flare (account and size are ours)",
        settings: "account = \"Aurora_deployment\"\nnodes_per_block = 2\nwalltime = \"30m\"",
        directives: &[
            "#PBS -l select=2:system=aurora",
            "#PBS -l place=scatter",
            "#PBS -l walltime=0:30:00",
            "#PBS -l filesystems=home:flare",
            "#PBS -q debug",
            "#PBS -A Aurora_deployment",
        ],
    },
];

/// Seconds of `[D-]H:MM:SS`.
fn seconds(text: &str) -> u64 {
    let (days, rest) = text.split_once('-').unwrap_or(("0", text));
    let clock = rest.split(':').fold(0, |sum, part| sum * 60 + part.parse::<u64>().expect("a time"));
    days.parse::<u64>().expect("days") * 86_400 + clock
}

/// What directives say, in one spelling: `account`, `time`, `select.system`, ..
fn meaning<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for line in lines {
        let Some(said) = line.strip_prefix("#SBATCH ").or_else(|| line.strip_prefix("#PBS ")) else {
            continue;
        };
        let said = said.strip_prefix("-l ").unwrap_or(said);
        let (key, value) = said.split_once(['=', ' ']).unwrap_or((said, ""));
        let pbs = line.starts_with("#PBS");
        let key = match key.trim_start_matches('-') {
            "A" => "account",
            "C" => "constraint",
            "N" if !pbs => "nodes",
            "p" => "partition",
            "q" if pbs => "queue",
            "q" => "qos",
            "t" | "walltime" => "time",
            other => other,
        };
        if key == "select" {
            let mut parts = value.split(':');
            all.insert("nodes".into(), parts.next().unwrap_or_default().into());
            all.extend(
                parts.filter_map(|p| p.split_once('=')).map(|(k, v)| (format!("select.{k}"), v.to_owned())),
            );
        } else if key == "time" {
            all.insert(key.into(), seconds(value).to_string());
        } else {
            all.insert(key.into(), value.trim_matches('"').to_owned());
        }
    }
    all
}

/// The script that a block of an endpoint with these settings would have.
fn script(example: &Example) -> String {
    let vars = [("HOME", "/home/u"), ("USER", "u"), ("PSCRATCH", "/scratch"), ("SCRATCH", "/scratch")];
    let env = vars.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let text = format!("[endpoints.x]\nprofile = \"{}\"\n{}\n", example.profile, example.settings);
    let sources = Sources { edited: Some((PathBuf::from("example.toml"), text)), ..Sources::default() };
    let config = Config::load(&Surroundings { env, uid: 1000 }, &sources).expect("configuration");
    let endpoint = &config.endpoints["x"];
    let provider = pf_providers::provider(&pf_providers::ProviderConfig {
        name: endpoint.provider.clone(),
        dialect: endpoint.dialect.clone(),
        program: "/pf".into(),
        user: "u".into(),
        ends_with: None,
    });
    let shape = &endpoint.shapes[0];
    let plan = provider.expect("provider").submit(&pf_providers::BlockRequest {
        name: "pf-x-b1".into(),
        dir: "/scratch/b1".into(),
        program: "/scratch/bin/pf".into(),
        nodes: shape.nodes_per_block,
        walltime_ms: shape.walltime_ms,
        asks: shape.asks.clone(),
        ..pf_providers::BlockRequest::default()
    });
    plan.expect("plan").script.expect("a script").1
}

#[test]
fn blocks_are_asked_for_as_the_centres_say() {
    for example in EXAMPLES {
        let script = script(example);
        let ours = meaning(script.lines());
        let theirs = meaning(example.directives.iter().copied());
        assert!(theirs.len() >= 4, "{}", example.profile);
        for (key, value) in &theirs {
            assert_eq!(ours.get(key), Some(value), "{}: {key} ({})\n{script}", example.profile, example.from);
        }
    }
}
