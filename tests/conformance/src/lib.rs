//! What Kubernetes and Calico promise about policy, as policy tests that anybody can read and run.
//!
//! Each document of `case/*.yaml` is one case: `meshctl policy test tests/conformance/case/*.yaml` runs them all. A
//! case names in a comment where its promise is written; a verdict that two programs give differently is to become a
//! case here.

use std::{fs, path::Path};

use anyhow::Context;
use model::manifest;
use policy::scenario::PolicyTest;

/// A case and where it stands.
#[derive(Clone, Debug)]
pub struct Case {
    /// The file's name and the document's number in it, from 1.
    pub place: String,
    /// The policy test.
    pub test: PolicyTest,
}

/// Reads every case, in the order of the files' names.
///
/// Fails at the first file or document that cannot be read.
pub fn cases() -> anyhow::Result<Vec<Case>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("case");
    let mut files = fs::read_dir(&folder)
        .context("the folder of cases is there")?
        .map(|entry| Ok(entry?.path()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let text = fs::read_to_string(&file).with_context(|| format!("{name} cannot be read"))?;
        for (index, value) in manifest::values(&text).into_iter().enumerate() {
            let place = format!("{name}, document {}", index + 1);
            let test = PolicyTest::parse(&value.with_context(|| place.clone())?)
                .with_context(|| place.clone())?;
            cases.push(Case { place, test });
        }
    }

    Ok(cases)
}
