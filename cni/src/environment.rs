//! What the runtime says in `CNI_*` variables.

use std::{collections::BTreeMap, fmt};

use model::{
    InterfaceName, PodName,
    cni::{AttachmentKey, CniName, Code, Failure},
};

/// The namespace of pods whose runtime has none.
const NAMESPACE: &str = "default";

/// What the plugin is to do (`CNI_COMMAND`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Is it still attached as it was answered?
    Check,
    /// Detach what the runtime no longer has.
    Gc,
    /// Can containers be attached?
    Status,
    /// Which versions are spoken?
    Version,
}

/// What the `CNI_*` variables said, checked as the command needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// The command.
    pub command: Command,
    /// The attachment, where the command is about one.
    pub attachment: Option<AttachmentKey>,
    /// Path of the network namespace.
    pub netns: Option<String>,
    /// The pod, where the runtime has pods.
    pub pod: Option<PodName>,
    /// The pod's UID.
    pub pod_uid: Option<String>,
}

impl Command {
    const ALL: [Self; 6] = [
        Self::Add,
        Self::Del,
        Self::Check,
        Self::Gc,
        Self::Status,
        Self::Version,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    const fn is_about_one(self) -> bool {
        match self {
            Self::Add | Self::Del | Self::Check => true,
            Self::Gc | Self::Status | Self::Version => false,
        }
    }

    const fn needs_a_namespace(self) -> bool {
        match self {
            Self::Add | Self::Check => true,
            Self::Del | Self::Gc | Self::Status | Self::Version => false,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Environment {
    /// Reads the variables through `variable`; an empty one is as good as none.
    ///
    /// # Errors
    /// [`Code::Environment`]: one is missing or not of its form.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let command = command(variable("CNI_COMMAND"))?;
        let container = variable("CNI_CONTAINERID");
        let interface = variable("CNI_IFNAME");
        let netns = variable("CNI_NETNS");
        let missing: Vec<&str> = [
            (
                "CNI_CONTAINERID",
                command.is_about_one() && container.is_none(),
            ),
            ("CNI_NETNS", command.needs_a_namespace() && netns.is_none()),
            ("CNI_IFNAME", command.is_about_one() && interface.is_none()),
        ]
        .into_iter()
        .filter_map(|(name, is_missing)| is_missing.then_some(name))
        .collect();
        if !missing.is_empty() {
            return Err(wrong(format!("{command} needs {}", missing.join(", "))));
        }

        let attachment = container
            .zip(interface)
            .filter(|_| command.is_about_one())
            .map(|(container, interface)| key(&container, &interface))
            .transpose()?;
        // Podman asks for the version with a namespace that is none.
        let args = variable("CNI_ARGS")
            .filter(|_| command.is_about_one())
            .map(|text| args(&text))
            .transpose()?
            .unwrap_or_default();

        Ok(Self {
            command,
            attachment,
            netns: netns
                .filter(|_| command.is_about_one())
                .map(namespace)
                .transpose()?,
            pod: pod(&args)?,
            pod_uid: args.get("K8S_POD_UID").cloned(),
        })
    }
}

fn command(text: Option<String>) -> Result<Command, Failure> {
    let Some(text) = text else {
        return Err(wrong(
            "CNI_COMMAND is missing: a container runtime calls this program",
        ));
    };
    let found = Command::ALL
        .into_iter()
        .find(|command| command.as_str() == text);

    found.ok_or_else(|| {
        wrong(format!(
            "CNI_COMMAND is {text:.20?}, which no CNI version has"
        ))
    })
}

fn key(container: &str, interface: &str) -> Result<AttachmentKey, Failure> {
    let container =
        CniName::parse(container).map_err(|error| wrong(format!("CNI_CONTAINERID: {error}")))?;
    let interface: InterfaceName = interface
        .parse()
        .map_err(|error| wrong(format!("CNI_IFNAME: {error}")))?;
    // The specification forbids what `ip` takes for an alias.
    if interface.as_str().contains(':') {
        return Err(wrong(format!("CNI_IFNAME: {interface} contains a ':'")));
    }

    Ok(AttachmentKey {
        container,
        interface,
    })
}

fn namespace(path: String) -> Result<String, Failure> {
    let is_path = path.starts_with('/') && path.len() <= 4096 && !path.contains('\0');
    if is_path {
        return Ok(path);
    }

    Err(wrong(format!(
        "CNI_NETNS: {path:.60?} is not an absolute path"
    )))
}

/// `KEY=VALUE;KEY=VALUE`.
fn args(text: &str) -> Result<BTreeMap<String, String>, Failure> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty());

    pairs
        .map(|pair| {
            pair.split_once('=')
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .ok_or_else(|| wrong(format!("CNI_ARGS: {pair:.60?} is not KEY=VALUE")))
        })
        .collect()
}

/// A runtime that has names and no namespaces, such as podman, says only the name: the namespace is `default` then.
fn pod(args: &BTreeMap<String, String>) -> Result<Option<PodName>, Failure> {
    let named = |key: &str| {
        let value = args.get(key).map(String::as_str);
        value.filter(|value| !value.is_empty())
    };
    let (namespace, name) = match (named("K8S_POD_NAMESPACE"), named("K8S_POD_NAME")) {
        (None, None) => return Ok(None),
        (Some(namespace), Some(name)) => (namespace, name),
        (Some(_), None) => return Err(wrong("CNI_ARGS: K8S_POD_NAME is missing")),
        (None, Some(name)) => (NAMESPACE, name),
    };
    let pod = PodName::parse(&format!("{namespace}/{name}"))
        .map_err(|error| wrong(format!("CNI_ARGS: {error}")))?;

    Ok(Some(pod))
}

fn wrong(msg: impl Into<String>) -> Failure {
    Failure::new(Code::Environment, msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, Failure> {
        Environment::read(|wanted| {
            let found = variables.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c0ffee"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
    ];

    fn with<'a>(name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
        let others = ADD.into_iter().filter(|(other, _)| *other != name);

        others.chain([(name, value)]).collect()
    }

    #[test]
    fn an_add_names_container_namespace_and_interface() {
        let said = read(&ADD).unwrap();

        assert_eq!(said.attachment.unwrap().to_string(), "eth0 of c0ffee");
        assert_eq!(said.netns.as_deref(), Some("/run/netns/x"));
        assert_eq!(said.pod, None);
    }

    #[test]
    fn whatever_is_missing_is_named_at_once() {
        let said = read(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "")]).unwrap_err();

        assert_eq!(said.code, Code::Environment);
        assert_eq!(said.msg, "ADD needs CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME");
        let said = read(&[("CNI_COMMAND", "DEL"), ("CNI_IFNAME", "eth0")]).unwrap_err();
        assert_eq!(said.msg, "DEL needs CNI_CONTAINERID");
        for alone in ["GC", "STATUS", "VERSION"] {
            assert!(read(&[("CNI_COMMAND", alone)]).is_ok(), "{alone}");
            let noise = [("CNI_COMMAND", alone), ("CNI_NETNS", "dummy")];
            assert_eq!(read(&noise).unwrap().netns, None, "{alone}");
        }
    }

    #[test]
    fn a_value_that_could_be_something_else_is_refused() {
        for (name, value) in [
            ("CNI_COMMAND", "add"),
            ("CNI_CONTAINERID", "../x"),
            ("CNI_IFNAME", "eth0/.."),
            ("CNI_IFNAME", "eth0:1"),
            ("CNI_IFNAME", "sixteen-letters!"),
            ("CNI_NETNS", "netns"),
            ("CNI_ARGS", "K8S_POD_NAME"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=shop"),
            ("CNI_ARGS", "K8S_POD_NAME=Web_1"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=../web"),
        ] {
            let said = read(&with(name, value)).unwrap_err();
            assert_eq!(said.code, Code::Environment, "{name}={value}");
        }
    }

    #[test]
    fn a_name_without_a_namespace_is_of_the_default_one() {
        let said = read(&with("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web")).unwrap();

        assert_eq!(said.pod.unwrap().to_string(), "default/web");
    }

    #[test]
    fn a_pod_is_known_by_its_arguments_and_strangers_arguments_are_left_alone() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=7-a;X=a=b;";
        let said = read(&with("CNI_ARGS", args)).unwrap();

        assert_eq!(said.pod.unwrap().to_string(), "shop/web");
        assert_eq!(said.pod_uid.as_deref(), Some("7-a"));
    }
}
