//! Readers over what schedulers said; `fixtures/README.md` tells where each file is from.

use super::*;
use proptest::prelude::*;

fn said(stdout: &str) -> Answer {
    Answer { exit: Some(0), stdout: stdout.into(), stderr: String::new() }
}

macro_rules! fixture {
    ($name:literal) => {
        said(include_str!(concat!("../../fixtures/", $name)))
    };
}

fn rows(survey: &Survey) -> Vec<(&str, Option<u32>, Option<u32>)> {
    survey.queues.iter().map(|q| (q.name.as_str(), q.nodes_max, q.walltime_max_minutes)).collect()
}

#[expect(clippy::type_complexity, reason = "a row of the table below, read at a glance")]
fn kinds(survey: &Survey) -> Vec<(&str, Option<u32>, Option<u32>, Option<u32>)> {
    survey.nodes.iter().map(|n| (n.name.as_str(), n.count, n.memory_gib, n.gpus)).collect()
}

#[test]
fn slurm_tells_partitions_and_kinds_of_nodes() {
    let survey = read("slurm", &[said("slurm-wlm 22.05.8\n"), fixture!("slurm-sinfo.txt")]).expect("survey");
    assert_eq!(survey.version, "slurm-wlm 22.05.8");
    assert_eq!(survey.default_queue.as_deref(), Some("debug"));
    let day = Some(1440);
    let expected = [
        ("batch", Some(4), day),
        ("debug", Some(4), Some(5)),
        ("scavenge", Some(4), day),
        ("scavkill", Some(4), day),
    ];
    assert_eq!(rows(&survey), expected);
    assert_eq!(survey.closed, ["stuck"]);
    assert_eq!(kinds(&survey), [("8c4g", Some(4), Some(15), Some(4))]);
}

#[test]
fn pbs_tells_queues_as_json_or_text() {
    let answers = [
        fixture!("pbs-version.txt"),
        fixture!("pbs-qstat-Q.json"),
        Answer::default(),
        fixture!("pbs-pbsnodes-a.txt"),
        said("Server: pbshead\n    server_state = Active\n    default_queue = workq\n"),
    ];
    let survey = read("pbs", &answers).expect("survey");
    assert_eq!((survey.dialect, survey.default_queue.as_deref()), (Some("openpbs"), Some("workq")));
    assert_eq!(rows(&survey), [("private", None, None), ("small", None, None), ("workq", None, Some(60))]);
    assert!(survey.queues[0].on_request && survey.queues[1].jobs_max == Some(2));
    assert_eq!(survey.closed, ["closed", "stopped"]);
    assert_eq!(kinds(&survey), [("8c4g", Some(2), Some(64), Some(4))]);

    let torque = [
        Answer { exit: Some(0), stdout: String::new(), stderr: "Version: 6.1.2\nCommit: 661e092\n".into() },
        Answer { exit: Some(2), stdout: String::new(), stderr: "usage: qstat".into() },
        fixture!("pbs-qstat-Qf.txt"),
        fixture!("torque-pbsnodes-a.txt"),
    ];
    let survey = read("pbs", &torque).expect("survey");
    assert_eq!((survey.dialect, survey.version.as_str()), (Some("torque"), "Version: 6.1.2"));
    assert_eq!(rows(&survey), [("workq", Some(16), Some(60))]);
    assert_eq!((survey.queues[0].jobs_max, survey.closed.as_slice()), (Some(2), &["closed".to_owned()][..]));
    assert_eq!(kinds(&survey), [("8c4g", Some(2), None, Some(4))]);
}

#[test]
fn lsf_tells_run_limits_and_hosts() {
    let answers =
        [fixture!("lsf-lsid-openlava.txt"), fixture!("lsf-bqueues-l.txt"), fixture!("lsf-lshosts-w.txt")];
    let survey = read("lsf", &answers).expect("survey");
    assert_eq!(
        (survey.dialect, survey.version.as_str()),
        (Some("openlava"), "OpenLava 4.0dev4, Nov 23 2026")
    );
    assert_eq!(rows(&survey), [("normal", None, Some(720))]);
    assert_eq!(survey.closed, ["night"]);
    assert_eq!(kinds(&survey), [("48c", Some(2), Some(191), None)]);
}

#[test]
fn cobalt_tells_queues() {
    let survey =
        read("cobalt", &[fixture!("cobalt-version.txt"), fixture!("cobalt-qstat-Q.txt")]).expect("survey");
    assert_eq!(rows(&survey), [("debug", None, Some(60)), ("default", None, None)]);
    assert_eq!(survey.queues[0].running_max, Some(2));
    assert_eq!(
        (survey.closed.as_slice(), survey.default_queue.as_deref()),
        (&["R.test".to_owned()][..], Some("default"))
    );
}

#[test]
fn a_scheduler_that_does_not_answer_is_an_error_in_its_words() {
    let down = Answer {
        exit: Some(1),
        stdout: String::new(),
        stderr: "slurm_load_partitions: Unable to contact slurm controller\n".into(),
    };
    let error = read("slurm", &[said("slurm 23.02.7"), down]).unwrap_err();
    assert!(
        error.to_string().contains("sinfo -h -o")
            && error.to_string().ends_with("Unable to contact slurm controller"),
        "{error}"
    );
    let error = read("slurm", &[said("slurm 23.02.7"), said("welcome to our machine\n")]).unwrap_err();
    assert!(matches!(error, SurveyError::NotUnderstood { .. }), "{error}");
}

#[test]
fn what_is_written_is_a_profile() {
    let survey = read("slurm", &[said("slurm-wlm 22.05.8\n"), fixture!("slurm-sinfo.txt")]).expect("survey");
    let machine = Machine {
        title: "My \"cluster\"".into(),
        scheduler: "slurm".into(),
        launcher: "srun".into(),
        host: "login12.cluster.org".into(),
        interfaces: vec!["ib0".into()],
        day: "2026-11-24".into(),
        node: None,
    };
    let text = render(&machine, &survey);
    let profile = crate::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!((profile.title.as_str(), profile.setting("queue")), ("My \"cluster\"", Some("debug")));
    assert_eq!(
        (profile.setting("walltime"), profile.detect.hosts[0].as_str()),
        (Some("5m"), "login*.cluster.org")
    );
    assert_eq!(profile.queues, survey.queues);
    assert_eq!(profile.nodes, survey.nodes);
}

#[test]
fn times_are_read_as_schedulers_write_them() {
    for (text, minutes) in [
        ("5:00", Some(5)),
        ("1-00:00:00", Some(1440)),
        ("2-12", Some(3600)),
        ("01:00:00", Some(60)),
        ("3600", Some(60)),
        ("infinite", None),
        ("", None),
        ("99999999999999999999:0", None),
        ("4000000000000000-00", None),
    ] {
        assert_eq!(clock_minutes(text), minutes, "{text}");
    }
}

proptest! {
    #[test]
    fn readers_are_total(texts in proptest::collection::vec("(?s).{0,80}|[a-z*|:,()0-9 =\n\t-]{0,200}", 5), which in 0..4usize) {
        let answers: Vec<Answer> = texts.iter().map(|t| said(t)).collect();
        if let Ok(survey) = read(SCHEDULERS[which], &answers) {
            let machine = Machine { title: "x".into(), host: "h".into(), ..Machine::default() };
            let text = render(&machine, &survey);
            prop_assert!(crate::parse(&text).is_ok(), "{}", text);
        }
    }

    #[test]
    fn mangled_fixtures_are_survived(cut in 0usize..2000, at in 0usize..2000, noise in "(?s).{0,10}", which in 0..4usize) {
        let fixtures = [
            include_str!("../../fixtures/slurm-sinfo.txt"),
            include_str!("../../fixtures/pbs-qstat-Q.json"),
            include_str!("../../fixtures/lsf-bqueues-l.txt"),
            include_str!("../../fixtures/cobalt-qstat-Q.txt"),
        ];
        let mut text: String = fixtures[which].chars().take(cut).collect();
        let at = text.char_indices().map(|c| c.0).nth(at).unwrap_or(0);
        text.insert_str(at, &noise);
        let answers = [said(""), said(&text), said(&text), said(&text), said(&text)];
        let _ = read(SCHEDULERS[which], &answers);
    }
}
