//! The example that people copy holds.

use model::manifest;
use policy::scenario::PolicyTest;

const PAGE: &str = include_str!("../../../docs/policy-test.md");

#[test]
fn the_example_of_the_documentation_holds() {
    let (_, rest) = PAGE.split_once("```yaml\n").unwrap();
    let (example, _) = rest.split_once("```\n").unwrap();
    let value = manifest::values(example).remove(0).unwrap();
    let test = PolicyTest::parse(&value).unwrap();

    let report = test.run(&[]).unwrap();

    assert_eq!(test.check(), Ok(()));
    assert_eq!(report.errors, []);
    assert_eq!(report.verdicts.len(), 6);
    for entry in report.verdicts {
        assert_eq!(entry.difference, None, "{entry:#?}");
    }
}
