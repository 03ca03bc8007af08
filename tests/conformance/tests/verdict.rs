//! Every case of the folder, held against the evaluator.

use std::collections::BTreeSet;

use conformance::cases;

/// How many cases there are at least: a folder that was not found would otherwise pass.
const CASES_MIN: usize = 170;

#[test]
fn every_promise_is_kept() {
    let cases = cases().unwrap();
    assert!(cases.len() >= CASES_MIN, "{} cases", cases.len());
    let mut wrong = Vec::new();
    let mut verdicts = 0;
    for case in &cases {
        let name = format!("{} ({})", case.place, case.test.metadata.name);
        let report = match case.test.check().and_then(|()| case.test.run(&[])) {
            Ok(report) => report,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        verdicts += report.verdicts.len();
        for error in &report.errors {
            wrong.push(format!(
                "{name}: {}: {}: {}",
                error.resource, error.field, error.message
            ));
        }
        for entry in report
            .verdicts
            .iter()
            .filter(|entry| entry.difference.is_some())
        {
            wrong.push(format!(
                "{name}: step {} probe {}: {} -> {} {} {:?} IPv{}: {:?}, found {:?}: {:#?}",
                entry.step,
                entry.probe,
                entry.from,
                entry.to,
                entry.protocol,
                entry.port,
                entry.family,
                entry.difference.as_ref().unwrap(),
                entry.verdict,
                entry.decisions,
            ));
        }
    }

    assert!(verdicts > 5 * CASES_MIN, "{verdicts} verdicts");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_two_cases_have_one_name() {
    let mut names = BTreeSet::new();
    for case in cases().unwrap() {
        let name = case.test.metadata.name;
        assert!(!name.is_empty(), "{} has no name", case.place);
        assert!(
            names.insert(name.clone()),
            "{}: {name} stands twice",
            case.place
        );
    }
}
