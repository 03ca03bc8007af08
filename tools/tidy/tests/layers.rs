//! What each crate may not depend on, and why.

use std::process::Command;

const NO_RUNTIME: &str =
    "pure crates run anywhere: in the agent, in the simulator, under the fuzzer";
const NO_KERNEL: &str = "only `dataplane` talks to the kernel";
const NO_SHORTCUT: &str = "the brain and the hands meet only in `meshd`";
const NO_MESH: &str = "the tunnel is a product of its own and knows nothing of the mesh";

/// Crates that only compute.
const PURE: [&str; 5] = ["model", "cni-ipam", "policy", "meshd-core", "wire-core"];

#[test]
fn pure_crates_have_no_runtime_and_no_kernel() {
    for pure in PURE {
        for runtime in ["tokio", "tonic", "kube", "rusqlite", "axum"] {
            forbid(pure, runtime, NO_RUNTIME);
        }
        for kernel in ["rtnetlink", "netlink-sys", "nlink", "rustix", "nix"] {
            forbid(pure, kernel, NO_KERNEL);
        }
    }
}

#[test]
fn the_words_depend_on_nothing_of_ours() {
    for other in [
        "keyring",
        "cni-ipam",
        "meshd-core",
        "store",
        "dataplane",
        "wire-core",
    ] {
        forbid("model", other, "the words come first");
    }
}

#[test]
fn what_policy_means_is_said_in_our_words_alone() {
    for other in [
        "keyring",
        "cni-ipam",
        "meshd-core",
        "store",
        "dataplane",
        "wire-core",
    ] {
        forbid(
            "policy",
            other,
            "an oracle shares nothing with what it judges",
        );
    }
}

#[test]
fn brain_and_hands_do_not_know_each_other() {
    forbid("meshd-core", "dataplane", NO_SHORTCUT);
    forbid("meshd-core", "store", NO_SHORTCUT);
    forbid("dataplane", "meshd-core", NO_SHORTCUT);
    forbid("dataplane", "store", NO_SHORTCUT);
    forbid("store", "dataplane", NO_SHORTCUT);
    forbid("store", "meshd-core", NO_SHORTCUT);
}

#[test]
fn the_tunnel_knows_nothing_of_the_mesh() {
    for wire in ["wire", "wire-core"] {
        for ours in ["model", "store", "dataplane", "meshd-core"] {
            forbid(wire, ours, NO_MESH);
        }
    }
}

#[test]
fn the_plugin_that_runtimes_call_knows_neither_store_nor_kernel() {
    for other in [
        "store",
        "dataplane",
        "meshd-core",
        "tonic",
        "rustls",
        "netlink-sys",
    ] {
        forbid("cni", other, "it holds no credentials and decides nothing");
    }
}

#[test]
fn a_forbidden_dependency_is_noticed() {
    let tree = tree("meshd-core");

    assert!(
        depends(&tree, "model"),
        "the check sees the dependencies that there are"
    );
}

fn forbid(package: &str, dependency: &str, why: &str) {
    assert!(
        !depends(&tree(package), dependency),
        "`{package}` must not depend on `{dependency}`: {why}"
    );
}

fn depends(tree: &str, dependency: &str) -> bool {
    let library = dependency.replace('-', "_");

    tree.lines().any(|line| line == library)
}

#[expect(
    clippy::disallowed_methods,
    reason = "asking cargo is the point of this test"
)]
fn tree(package: &str) -> String {
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--edges=normal",
            "--prefix=none",
            "--format={lib}",
        ])
        .args(["--package", package])
        .output()
        .expect("cargo is running this test");
    assert!(
        tree.status.success(),
        "{}",
        String::from_utf8_lossy(&tree.stderr)
    );

    String::from_utf8_lossy(&tree.stdout).into_owned()
}
