//! Every verb says what it does, with an example; the help of the main ones is pinned.

use clap::{Command, CommandFactory, Parser};
use pf_cli::args::Cli;

fn walk(command: &Command, path: &str, visit: &mut dyn FnMut(&str, &Command)) {
    visit(path, command);
    for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
        walk(sub, &format!("{path} {}", sub.get_name()), visit);
    }
}

#[test]
fn every_help_has_an_example_and_every_option_a_word() {
    let mut missing = Vec::new();
    let mut seen = 0;
    walk(&Cli::command(), "pf", &mut |path, command| {
        seen += 1;
        let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        if !example.contains("Examples:\n  ") || !example.contains("pf ") {
            missing.push(format!("{path}: no example"));
        }
        if command.get_about().is_none() {
            missing.push(format!("{path}: no word about it"));
        }
        for arg in command
            .get_arguments()
            .filter(|a| a.get_help().is_none() && a.get_id() != "help" && a.get_id() != "version")
        {
            missing.push(format!("{path}: {} is not explained", arg.get_id()));
        }
    });
    assert_eq!(missing, Vec::<String>::new());
    assert!(seen > 45, "{seen} verbs");
}

/// The examples are command lines that `pf` takes.
#[test]
fn every_example_is_taken() {
    let mut bad = Vec::new();
    walk(&Cli::command(), "pf", &mut |path, command| {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines = help.lines().filter(|l| l.trim_start().starts_with("pf "));
        for line in lines {
            // What a shell would take for itself, and the remarks beside the first examples.
            let line = line.split(" | ").next().unwrap_or_default().split(" > ").next().unwrap_or_default();
            let line =
                line.split("     ").next().unwrap_or_default().split(" || ").next().unwrap_or_default();
            let line =
                line.split("  leave").next().unwrap_or_default().split("; ").next().unwrap_or_default();
            let words: Vec<String> = line
                .replace("$JOB", "j12")
                .split_whitespace()
                .map(|w| w.trim_matches('\'').to_owned())
                .collect();
            if line.contains("\"$(") || line.contains("'KEY OF") {
                continue;
            }
            if let Err(error) = Cli::try_parse_from(&words) {
                bad.push(format!("{path}: {line}: {}", error.to_string().lines().next().unwrap_or_default()));
            }
        }
    });
    assert_eq!(bad, Vec::<String>::new());
}

fn help(path: &[&str]) -> String {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut found = &mut command;
    for name in path {
        found = found.find_subcommand_mut(name).expect("verb");
    }
    found.render_long_help().to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

#[test]
fn help_is_what_it_was() {
    insta::assert_snapshot!("pf", help(&[]));
    insta::assert_snapshot!("pf_run", help(&["run"]));
    insta::assert_snapshot!("pf_job_list", help(&["job", "list"]));
}

#[test]
fn wrong_arguments_are_refused_with_a_reason() {
    let wrong = |args: &[&str]| {
        let error = Cli::try_parse_from([&["pf"], args].concat()).expect_err("refused").to_string();
        error.lines().take_while(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
    };
    let cases: [&[&str]; 12] = [
        &["submit"],
        &["submit", "--array", "5-1", "x"],
        &["submit", "--cores", "0", "x"],
        &["submit", "--mem", "5", "x"],
        &["submit", "--time-limit", "soon", "x"],
        &["submit", "--array", "1", "--each-line", "f", "x"],
        &["submit", "--retry-on", "luck", "x"],
        &["submit", "-l", "novalue", "x"],
        &["wait", "x12"],
        &["logs", "j1.x"],
        &["job", "retry", "j1"],
        &["status", "--json", "--quiet"],
    ];
    insta::assert_snapshot!(cases.map(|c| format!("{}\n  {}", c.join(" "), wrong(c))).join("\n"));
}
