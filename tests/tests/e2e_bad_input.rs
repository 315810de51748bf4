//! Bad input gets a clear error, and nothing is lost.

#![expect(clippy::unwrap_used, reason = "a test ends where its own preparations fail")]

use pf_tests::site::{Site, pf_binary, wait_for};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

fn submit(site: &Site, args: &[&str]) -> String {
    let mut all = vec!["submit", "--quiet"];
    all.extend_from_slice(args);
    site.pf(&all).expect_code(0).stdout.trim().to_owned()
}

/// The only error group of a job that failed.
fn error_of(site: &Site, job: &str) -> serde_json::Value {
    site.pf(&["wait", job]).expect_code(1);
    site.pf(&["job", "show", job, "--json"]).json()["errors"][0].clone()
}

#[test]
fn unknown_things_are_named_with_a_hint() {
    let site = Site::new();
    site.pf(&["submit", "--endpoint", "nowhere", "--", "true"]).expect_code(4).says(&["nowhere", "hint:"]);
    site.pf(&["job", "show", "j999"]).expect_code(4).says(&["j999"]);
    site.pf(&["wait", "j999"]).expect_code(4).says(&["j999"]);
    site.pf(&["logs", "nonsense"]).expect_code(2).says(&["nonsense"]);
    site.pf(&["function", "show", &"0".repeat(64)]).expect_code(4).says(&["000000"]);
    site.pf(&["submit", "--no-such-option", "--", "true"]).expect_code(2).says(&["--no-such-option"]);
    for name in ["a b", "a]\nb", "a.b", ""] {
        let refused = site.pf(&["endpoint", "add", name]).expect_code(2);
        refused.says(&["cannot be the name of an endpoint", "hint:"]);
    }
    let config = site.path().join("root/config.toml");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    fs::write(&config, "# mine\nendpiont = \"local\"\n").unwrap();
    site.pf(&["config", "show"]).expect_code(2).says(&["config.toml", "endpiont", "2"]);
}

#[test]
fn more_than_any_node_has_is_refused_at_submit() {
    let site = Site::new();
    // The relay knows its largest node as soon as it has one.
    let job = submit(&site, &["--", "true"]);
    site.pf(&["wait", &job]).expect_code(0);
    let refused = site.pf(&["submit", "--cores", "4096", "--", "true"]).expect_code(3);
    refused.says(&["4096 cores", "hint:"]);
    site.pf(&["submit", "--gpus", "64", "--", "true"]).expect_code(3).says(&["64 GPUs"]);
    for gang in [["--nodes", "2"], ["--ranks-per-node", "4"]] {
        let refused = site.pf(&["submit", gang[0], gang[1], "--", "true"]).expect_code(3);
        refused.says(&["tasks of several nodes or ranks (MPI) are not supported yet", "hint:"]);
    }
}

#[test]
fn what_cannot_start_says_why() {
    let site = Site::new();
    let error = error_of(&site, &submit(&site, &["--", "no-such-command-here"]));
    assert_eq!(error["kind"], "refused");
    assert!(error["message"].as_str().unwrap().contains("no-such-command-here"), "{error}");
    let error = error_of(&site, &submit(&site, &["--cwd", "/no/such/folder", "--", "true"]));
    assert!(error["message"].as_str().unwrap().contains("/no/such/folder"), "{error}");
    let not_executable = site.path().join("plain");
    fs::write(&not_executable, "no").unwrap();
    let error = error_of(&site, &submit(&site, &["--", not_executable.to_str().unwrap()]));
    assert_eq!(error["kind"], "refused");
}

#[test]
fn signals_and_odd_output_are_told_as_they_are() {
    let site = Site::new();
    let error = error_of(&site, &submit(&site, &["--", "sh", "-c", "kill -9 $$"]));
    assert_eq!((error["kind"].as_str(), error["signal"].as_i64()), (Some("signal"), Some(9)));
    let job = submit(&site, &["--", "printf", "\\377\\376ok"]);
    site.pf(&["wait", &job]).expect_code(0);
    let log = site.pf(&["logs", &format!("{job}.0")]).expect_code(0);
    assert!(log.stdout.ends_with("ok"), "{log:?}");
    let job = submit(&site, &["--", "sh", "-c", "yes | head -c 100000000"]);
    site.pf(&["wait", &job]).expect_code(0);
    let log = site.pf(&["logs", &format!("{job}.0")]).expect_code(0);
    assert!(log.stdout.len() < 20_000_000, "output is not capped: {} bytes", log.stdout.len());
}

#[test]
fn an_item_over_the_limit_is_refused_and_the_limit_named() {
    let site = Site::new();
    let line = vec![b'x'; 9 << 20];
    let ran = site.pf_with_input(&["submit", "--each-line", "-", "--stdin-item", "--", "cat"], &line);
    ran.expect_code(2).says(&["262144 bytes"]);
}

#[test]
fn a_second_broker_on_the_same_folder_is_refused() {
    let site = Site::new();
    site.pf(&["broker", "start"]).expect_code(0);
    let pid = site.broker_pid().unwrap();
    let second = site.pf(&["broker", "run"]);
    assert_ne!(second.code, 0);
    second.says(&[&pid.to_string()]);
    assert_eq!(site.broker_pid(), Some(pid));
}

/// One raw HTTP request on the broker's socket; the whole answer.
fn raw(site: &Site, request: &[u8]) -> String {
    // The client stays until it is answered: a request whose sender has hung up is no request.
    let socket = wait_for("the broker's socket", || find_socket(site));
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn find_socket(site: &Site) -> Option<std::path::PathBuf> {
    let mut folders = vec![site.path().join("root")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            if entry.file_name() == "broker.sock" {
                return Some(entry.path());
            }
            if entry.file_type().ok()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    None
}

fn put_job(api: &str, key: &str, body: &str) -> Vec<u8> {
    format!(
        "PUT /v1/jobs/{key} HTTP/1.1\r\nHost: x\r\nX-Pilotfish-Api: {api}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[test]
fn a_repeated_put_makes_no_second_job_and_an_old_client_is_told() {
    let site = Site::new();
    site.pf(&["broker", "start"]).expect_code(0);
    let body = r#"{"spec":{"body":{"command":{"argv":["true"]}}},"count":3}"#;
    let key = "ab".repeat(16);
    let first = raw(&site, &put_job("1", &key, body));
    assert!(first.starts_with("HTTP/1.1 200") && first.contains("\"repeated\":false"), "{first}");
    let second = raw(&site, &put_job("1", &key, body));
    assert!(second.starts_with("HTTP/1.1 200") && second.contains("\"repeated\":true"), "{second}");
    let other = raw(&site, &put_job("1", &key, &body.replace("true", "false")));
    assert!(other.starts_with("HTTP/1.1 409"), "{other}");
    assert_eq!(site.pf(&["job", "list", "--json"]).json_lines().len(), 1);
    let old = raw(&site, &put_job("0", &key, body));
    assert!(old.starts_with("HTTP/1.1 426") && old.contains("version"), "{old}");
}

#[test]
fn garbage_on_the_socket_disturbs_nobody() {
    let site = Site::new();
    site.pf(&["broker", "start"]).expect_code(0);
    raw(&site, b"\x00\x01\x02\xffgarbage\r\n\r\n");
    raw(&site, b"PUT /v1/jobs/x HTTP/1.1\r\nHost: x\r\nX-Pilotfish-Api: 1\r\nContent-Length: 100000000000\r\n\r\nabc");
    raw(&site, &put_job("1", "nothex", "{"));
    raw(
        &site,
        &put_job("1", &"ab".repeat(16), "{\"spec\":{\"body\":{\"command\":{\"argv\":[]}}},\"count\":1}"),
    );
    let job = submit(&site, &["--", "true"]);
    site.pf(&["wait", &job]).expect_code(0);
}

#[test]
fn pf_needs_nothing_but_glibc() {
    let output = Command::new("readelf").arg("-d").arg(pf_binary()).output().expect("readelf comes with gcc");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let needed: Vec<&str> =
        text.lines().filter(|l| l.contains("(NEEDED)")).filter_map(|l| l.split(['[', ']']).nth(1)).collect();
    assert!(!needed.is_empty(), "{text}");
    let glibc = ["libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1"];
    for library in needed {
        assert!(glibc.contains(&library) || library.starts_with("ld-linux"), "pf needs {library}");
    }
}
