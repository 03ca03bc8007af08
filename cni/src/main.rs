//! `meshd-cni`, the CNI plugin of meshd.

use std::{
    env,
    io::{self, IsTerminal as _, Read as _, Write as _},
    path::Path,
    process::ExitCode,
};

use cni::{Environment, Outcome, Plugin, network};
use model::cni::{Code, Failure};

/// Where the agent listens, unless `MESHD_SOCKET` says otherwise.
const SOCKET: &str = "/run/meshd/meshd.sock";

/// Where removals wait for an agent, unless `MESHD_CNI_TOMBSTONES` says otherwise.
const TOMBSTONES: &str = "/var/lib/meshd/cni";

const ABOUT: &str = "meshd-cni: attaches containers to the mesh. Container runtimes call it with CNI_* variables and a
network configuration on standard input (CNI specification 0.3.0 to 1.1.0); it asks the agent on
/run/meshd/meshd.sock. Its place is the runtime's plugin folder, usually /opt/cni/bin.

Try it: echo '{\"cniVersion\": \"1.1.0\", \"name\": \"mesh\"}' | CNI_COMMAND=STATUS meshd-cni
";

fn main() -> ExitCode {
    if env::var_os("CNI_COMMAND").is_none() && io::stdin().is_terminal() {
        return print(ABOUT.as_bytes(), ExitCode::SUCCESS);
    }
    let outcome = match answer() {
        Ok(outcome) => outcome,
        Err(error) => Outcome {
            printed: Some(cni::answer::error(
                None,
                &Failure::new(Code::Io, format!("the plugin cannot run: {error}")),
            )),
            is_error: true,
        },
    };
    let code = if outcome.is_error {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    };
    match outcome.printed {
        Some(printed) => print(format!("{printed}\n").as_bytes(), code),
        None => code,
    }
}

fn answer() -> io::Result<Outcome> {
    let folder = |name: &str, usual: &str| env::var(name).unwrap_or_else(|_| usual.to_owned());
    let plugin = Plugin::new(
        Path::new(&folder("MESHD_SOCKET", SOCKET)),
        Path::new(&folder("MESHD_CNI_TOMBSTONES", TOMBSTONES)),
    );
    let mut configuration = Vec::new();
    io::stdin()
        .take(network::SIZE_MAX as u64 + 1)
        .read_to_end(&mut configuration)?;
    let environment = Environment::read(|name| env::var(name).ok());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;

    Ok(runtime.block_on(plugin.run(environment, &configuration)))
}

/// A runtime that does not listen gets an error all the same.
fn print(text: &[u8], code: ExitCode) -> ExitCode {
    match io::stdout().write_all(text) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}
