//! Layering, and the errors of a wrong configuration, as people see them.

use super::*;
use std::path::PathBuf;

fn surroundings(vars: &[(&str, &str)]) -> Surroundings {
    let env = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Surroundings { env, uid: 1000 }
}

fn sources(folder: &Path, admin: &str, user: &str, env: &[(&str, &str)]) -> Sources {
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("write");
        (!text.is_empty()).then_some(path)
    };
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Sources {
        admin: file("admin.toml", admin).into_iter().collect(),
        user: file("user.toml", user),
        edited: None,
        profiles: vec![folder.join("site-profiles")],
        env,
        flags: Vec::new(),
    }
}

fn error_of(admin: &str, user: &str, env: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().expect("temporary folder");
    let error =
        Config::load(&surroundings(&[("HOME", "/home/u")]), &sources(folder.path(), admin, user, env))
            .unwrap_err();
    assert_eq!(error.exit, crate::exit::Exit::Usage);
    error.lines().join("\n").replace(&folder.path().display().to_string(), "DIR")
}

#[test]
fn shapes_say_what_is_their_own_and_keep_their_order() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let user = "[endpoints.c]\nwalltime = \"2h\"\naccounts = [\"p1\"]\nparallelism = 0.25\nnode_hours_max = 100\n\
        [endpoints.c.shapes.small]\nblocks_max = 1\n[endpoints.c.shapes.big]\nnodes_per_block = 64\nwalltime = \"12h\"\naccounts = []\n";
    let sources = sources(folder.path(), "", user, &[]);
    let config = Config::load(&surroundings(&[("HOME", "/home/u")]), &sources).expect("load");
    let c = &config.endpoints["c"];
    let shapes = c
        .shapes
        .iter()
        .map(|s| (s.name.as_str(), s.blocks_max, s.nodes_per_block, s.walltime_ms / 3_600_000));
    assert_eq!(shapes.collect::<Vec<_>>(), [("small", 1, 1, 2), ("big", 1, 64, 12)]);
    assert_eq!((&c.shapes[0].accounts[..], c.shapes[1].accounts.len()), (&["p1".to_owned()][..], 0));
    assert_eq!((c.parallelism_milli, c.node_hours_max_milli, c.failures), (250, Some(100_000), 10));
    assert_eq!(config.endpoints["local"].shapes[0].name, "default");
}

#[test]
fn what_is_no_shape_is_refused() {
    let error = error_of("", "[endpoints.c.shapes.small]\nblock_max = 1\n", &[]);
    assert_eq!(
        error,
        "error: DIR/user.toml:2: unknown key \"block_max\" in [endpoints.c.shapes.small]\nhint: the nearest key of a shape is blocks_max"
    );
    let error = error_of("", "[endpoints.c]\nshapes = 3\n", &[]);
    assert!(error.contains("DIR/user.toml:2: endpoints.c.shapes must be a table"), "{error}");
    let error = error_of("", "[endpoints.c]\nparallelism = 1.5\n", &[]);
    assert!(error.contains("a number from 0 to 1, with at most three digits"), "{error}");
    let error =
        error_of("[limits]\nnodes_per_block_max = 8\n", "[endpoints.c.shapes.s]\nnodes_per_block = 9\n", &[]);
    assert!(error.contains("over the admin's limit of 8"), "{error}");
}

#[test]
fn later_layers_win_and_say_so() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let admin = "[places]\ndurable = \"/admin/durable\"\noutput = \"/admin/output\"\n[endpoints.big]\nblocks_max = 4\ncores = 8\n";
    let user = "[places]\ndurable = \"~/mine\"\n\n[endpoints.big]\nblocks_max = 9\n";
    let mut sources =
        sources(folder.path(), admin, user, &[("PILOTFISH_BROKER_LISTEN_RELAYS", "10.0.0.1:1, 10.0.0.2:1")]);
    sources.flags.push(("endpoints.local.cores".into(), "3".into(), "--workers"));
    let config = Config::load(&surroundings(&[("HOME", "/home/u")]), &sources).expect("load");
    assert_eq!(config.places.durable, PathBuf::from("/home/u/mine"));
    assert_eq!(config.places.output, PathBuf::from("/admin/output"));
    assert_eq!(config.places.local, PathBuf::from("/tmp/pilotfish-1000"));
    assert_eq!(config.endpoints["big"].blocks_max, 9);
    assert_eq!(config.endpoints["big"].cores, Some(8));
    assert_eq!(config.endpoints["big"].shapes[0].walltime_ms, 86_400_000);
    assert_eq!(config.endpoints["local"].cores, Some(3));
    assert_eq!(config.broker.listen_relays, ["10.0.0.1:1", "10.0.0.2:1"]);
    let origin = |name: &str| {
        config.settings.values[name].1.to_string().replace(&folder.path().display().to_string(), "DIR")
    };
    let shown = [
        "places.durable",
        "places.output",
        "places.shared",
        "endpoints.big.blocks_max",
        "endpoints.big.cores",
        "endpoints.big.provider",
        "endpoints.local.cores",
        "broker.listen_relays",
    ]
    .map(|n| format!("{n}: {}", origin(n)));
    insta::assert_snapshot!(shown.join("\n"), @r"
    places.durable: DIR/user.toml:2
    places.output: DIR/admin.toml:3
    places.shared: built in
    endpoints.big.blocks_max: DIR/user.toml:5
    endpoints.big.cores: DIR/admin.toml:6
    endpoints.big.provider: profile local:6
    endpoints.local.cores: flag --workers
    broker.listen_relays: $PILOTFISH_BROKER_LISTEN_RELAYS
    ");
}

#[test]
fn one_root_holds_everything_unless_more_is_said() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let sources = sources(
        folder.path(),
        "[places]\noutput = \"/admin\"\n",
        "",
        &[("PILOTFISH_PLACES_SHARED", "/scratch")],
    );
    let config = Config::load(&surroundings(&[("HOME", "/home/u"), ("PILOTFISH_DIR", "/x/")]), &sources)
        .expect("load");
    assert_eq!(config.places.durable, PathBuf::from("/x/durable"));
    assert_eq!(config.places.output, PathBuf::from("/x/output"));
    assert_eq!(config.places.shared, PathBuf::from("/scratch"));
    assert_eq!(config.settings.values["places.local"].1.to_string(), "$PILOTFISH_DIR");
}

#[test]
fn wrong_configurations_say_where_and_what_is_near() {
    let cases = [
        ("", "[places]\ndurabel = \"/x\"\n", &[][..]),
        ("", "# one\n\n[endpoint.local]\ncores = 1\n", &[]),
        ("", "[endpoints.local]\nprovider = \"slrm\"\n", &[]),
        ("", "[endpoints.local]\ncores = \"two\"\n", &[]),
        ("", "[endpoints.local]\nwalltime = \"yesterday\"\n", &[]),
        ("", "[endpoints.\"a b\"]\ncores = 1\n", &[]),
        ("", "[endpoints]\nlocal = 5\n", &[]),
        ("", "[endpoints.local]\nprofile = \"perlmuter\"\n", &[]),
        ("", "[endpoints.local]\nblocks_min = 3\n", &[]),
        ("", "places = 3\n", &[]),
        ("", "[places\n", &[]),
        ("", "[places]\ndurable = \"/x\"\ndurable = \"/y\"\n", &[]),
        ("", "[places]\ndurable = \"relative\"\n", &[]),
        ("", "[limits]\nblocks_max = 3\n", &[]),
        ("[limits]\nblocks_max = 3\n", "[endpoints.local]\nblocks_max = 4\n", &[]),
        ("[limits]\nwalltime_max = \"1h\"\n", "[endpoints.local]\nwalltime = \"61m\"\n", &[]),
        ("[limits]\nwalltime_max = 3\n", "", &[]),
        ("[limits]\nblock_max = 3\n", "", &[]),
        ("", "", &[("PILOTFISH_BROKER_ADRESS", "https://x:1")]),
    ];
    let shown = cases.map(|(admin, user, env)| error_of(admin, user, env)).join("\n\n");
    insta::assert_snapshot!(shown);
}

#[test]
fn every_example_is_a_configuration() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut loaded = 0;
    for entry in std::fs::read_dir(&folder).expect("configs/") {
        let path = entry.expect("entry").path();
        let admin = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("admin"));
        let sources = if admin {
            Sources { admin: vec![path.clone()], ..Sources::default() }
        } else {
            Sources { user: Some(path.clone()), ..Sources::default() }
        };
        let vars = [("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/tmp"), ("SCRATCH", "/scratch/u")];
        if let Err(error) = Config::load(&surroundings(&vars), &sources) {
            panic!("{}: {}", path.display(), error.lines().join("\n"));
        }
        loaded += 1;
    }
    assert!(loaded >= 3, "configs/ has {loaded} files");
}

#[test]
fn limits_cut_what_is_below_the_admin() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let admin = "[limits]\nwalltime_max = \"12h\"\n";
    let mut sources = sources(folder.path(), admin, "", &[]);
    // A second admin's file may tighten a limit, never loosen it.
    let second = folder.path().join("second.toml");
    std::fs::write(&second, "[limits]\nwalltime_max = \"18h\"\nblocks_max = 5\n").expect("write");
    sources.admin.push(second);
    let config = Config::load(&surroundings(&[("HOME", "/home/u")]), &sources).expect("load");
    assert_eq!(config.endpoints["local"].shapes[0].walltime_ms, 12 * 3_600_000);
    assert!(config.settings.values["endpoints.local.walltime"].1.to_string().ends_with("admin.toml:2"));
    assert_eq!(config.endpoints["local"].blocks_max, 1);
}

#[test]
fn a_profile_of_the_user_s_own_wins_and_says_so() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let sources = sources(folder.path(), "", "[endpoints.x]\nprofile = \"mine\"\nblocks_max = 7\n", &[]);
    std::fs::create_dir(folder.path().join("site-profiles")).expect("mkdir");
    let file = folder.path().join("site-profiles/mine.toml");
    let load = |text: &str| {
        std::fs::write(&file, text).expect("write");
        Config::load(&surroundings(&[("HOME", "/home/u"), ("USER", "ann")]), &sources)
    };
    let head = "title = \"Mine\"\nstatus = \"active\"\n";
    let config = load(&format!(
        "{head}[endpoint]\nwalltime = \"2h\"\nblocks_max = 3\n[places]\nshared = \"/s/${{USER}}/pf\"\n"
    ))
    .expect("load");
    assert_eq!(
        (config.endpoints["x"].shapes[0].walltime_ms, config.endpoints["x"].blocks_max),
        (7_200_000, 7)
    );
    assert_eq!(config.places.shared, PathBuf::from("/s/ann/pf"));
    let origin = &config.settings.values["endpoints.x.walltime"].1;
    assert_eq!(origin.to_string(), format!("profile {}:4", file.display()));
    let shown = [
        format!("{head}[endpoint]\nwaltime = \"2h\"\n"),
        format!("{head}[[queues]]\nname = \"a\"\nnode_max = 3\n"),
        format!("{head}[places]\nshared = \"$NOWHERE/pf\"\n"),
    ]
    .map(|text| {
        load(&text).unwrap_err().lines().join("\n").replace(&folder.path().display().to_string(), "DIR")
    });
    insta::assert_snapshot!(shown.join("\n\n"));
}

/// Each profile that is part of `pf` gives an endpoint that can be configured: every key and value is one that holds.
#[test]
fn every_profile_makes_an_endpoint() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let vars = [("HOME", "/home/u"), ("USER", "u"), ("PSCRATCH", "/s"), ("SCRATCH", "/s")];
    for (name, text) in pf_site_profiles::EMBEDDED {
        let profile = pf_site_profiles::parse(text).expect("profile");
        let sources = sources(folder.path(), "", &format!("[endpoints.x]\nprofile = {name:?}\n"), &[]);
        let config = Config::load(&surroundings(&vars), &sources)
            .unwrap_or_else(|e| panic!("{name}: {}", e.lines().join("\n")));
        let endpoint = &config.endpoints["x"];
        assert_eq!(endpoint.provider, profile.scheduler());
        // The scheduler can be told all that the profile asks for.
        let config = pf_providers::ProviderConfig {
            name: endpoint.provider.clone(),
            dialect: endpoint.dialect.clone(),
            program: "/pf".into(),
            user: "u".into(),
            ends_with: None,
        };
        let provider = pf_providers::provider(&config).unwrap_or_else(|e| panic!("{name}: {e}"));
        let shape = &endpoint.shapes[0];
        let request = pf_providers::BlockRequest {
            name: "b".into(),
            dir: "/d".into(),
            program: "/pf".into(),
            nodes: shape.nodes_per_block,
            walltime_ms: shape.walltime_ms,
            asks: shape.asks.clone(),
            ..pf_providers::BlockRequest::default()
        };
        if let Err(error) = provider.submit(&request) {
            panic!("{name}: {error}");
        }
    }
}

#[test]
fn a_named_file_must_exist() {
    let here = surroundings(&[("HOME", "/home/u"), ("PILOTFISH_CONFIG", "/nowhere/c.toml")]);
    let sources = here.sources(None).expect("sources");
    let error = Config::load(&here, &sources).unwrap_err();
    assert_eq!(error.lines()[0], "error: read configuration /nowhere/c.toml");
}
