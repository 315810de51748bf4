//! Every launcher in one table: what it starts for the same managers and the same program.

use super::*;
use std::fmt::Write;

fn managers(names: &[&str]) -> LaunchPlan {
    let argv = ["/s/bin/3f/pf", "manager", "--ticket", "/s/b 7/ticket.json", "--node", "{node}"];
    let node =
        |(at, name): (usize, &&str)| BlockNode { name: (*name).into(), first_slot: 2 * at, is_here: false };
    LaunchPlan {
        argv: argv.map(String::from).to_vec(),
        nodes: names.iter().enumerate().map(node).collect(),
        env: BTreeMap::from([("PF_WALLTIME_LEFT_MS".into(), "3500000".into())]),
    }
}

#[test]
fn what_reaches_nodes_one_by_one_does_not_reach_for_its_own() {
    let mut plan = managers(&["n1", "n2"]);
    plan.nodes[0].is_here = true;
    for launcher in [Each::Pbsdsh, Each::Tmrsh, Each::Blaunch, Each::Ssh] {
        let programs: Vec<String> =
            launcher.launch(&plan).unwrap().into_iter().map(|launch| launch.argv[0].clone()).collect();
        assert_eq!(programs, ["/usr/bin/env", launcher.name()]);
    }
}

/// Two ranks on each of the last two of three nodes, two cores and one GPU each.
fn program(names: [&str; 2]) -> RankPlan {
    let cores: Vec<Vec<u32>> = (4..8).map(|core| vec![core, core + 16]).collect();
    let node = |(number, name): (u16, &str)| RankNode {
        number,
        name: name.into(),
        ranks: shares(&cores, &[2, 3], 2),
    };
    RankPlan {
        shim: ["/s/bin/3f/pf", "rank"].map(String::from).to_vec(),
        argv: ["./solve", "in put"].map(String::from).to_vec(),
        nodes: (1..).zip(names).map(node).collect(),
        env: BTreeMap::from([("OMP_NUM_THREADS".into(), "2".into())]),
        attempt: "3.17".into(),
        gpu_variable: Some("ROCR_VISIBLE_DEVICES"),
    }
}

fn shown(launch: &Launch) -> String {
    let mut text = String::new();
    let quote = |word: &String| if word.contains([' ', '*']) { format!("\"{word}\"") } else { word.clone() };
    let argv: Vec<String> = launch.argv.iter().map(quote).collect();
    let _ = writeln!(text, "  {}", argv.join(" "));
    for (name, value) in &launch.env {
        let _ = writeln!(text, "    env {name}={value}");
    }
    if !launch.env_remove.is_empty() {
        let _ = writeln!(text, "    without {} variables", launch.env_remove.len());
    }
    for line in launch.file.iter().flat_map(|file| file.lines()) {
        let _ = writeln!(text, "    file| {line}");
    }
    text
}

#[test]
fn commands() {
    let mut text = String::new();
    for name in NAMES {
        let launcher = launcher(name).unwrap();
        assert_eq!(launcher.name(), name);
        let stop = launcher.stop();
        let _ = writeln!(
            text,
            "{name}: survives {}, coexists {}, environment {}, tether {}, drain {:?}, warn {:?}, kill {}",
            launcher.survives_node_loss(),
            launcher.coexists(),
            launcher.passes_environment(),
            launcher.tethers(),
            stop.drain,
            stop.warn,
            stop.kill
        );
        let names = ["nid03808", "nid03809", "nid03810"];
        let launches = launcher.launch(&managers(&names)).unwrap();
        for launch in &launches {
            text.push_str(&shown(launch));
        }
        let mut covered: Vec<u16> = launches.iter().flat_map(|launch| launch.nodes.clone()).collect();
        covered.sort_unstable();
        assert_eq!(covered, [0, 1, 2], "{name} starts each manager once");
        text.push_str(&match launcher.ranks(&program(["nid03809", "nid03810"])) {
            Ok(launch) => shown(&launch),
            Err(error) => format!("  ranks: {error}\n"),
        });
        text.push('\n');
    }
    insta::assert_snapshot!(text);
}

#[test]
fn what_a_launcher_cannot_place_is_refused() {
    let error = |name: &str, plan: &RankPlan| launcher(name).unwrap().ranks(plan).unwrap_err().to_string();
    assert!(error("aprun", &program(["node1", "node2"])).contains("\"node1\" is no nid"));
    let mut apart = program(["a", "b"]);
    apart.nodes[1].number = 5;
    assert!(error("ibrun", &apart).contains("follow each other"));
    apart.nodes[1].ranks.pop();
    assert!(error("srun", &apart).contains("same number of ranks"));
    assert!(error("ssh", &apart).contains("needs the launcher of an MPI"));
    assert!(launcher("mpd").err().unwrap().to_string().contains("local, srun, openmpi"));
}

#[test]
fn local_takes_one_machine_for_several() {
    let place = |asked| Place { host: "here".into(), asked, ..Place::default() };
    let names =
        |asked| Local.nodes(&place(asked)).map(|nodes| nodes.into_iter().map(|n| n.name).collect::<Vec<_>>());
    assert_eq!(names(1).unwrap(), ["here"]);
    assert_eq!(names(2).unwrap(), ["here.0", "here.1"]);
    assert!(names(0).is_err());
}
