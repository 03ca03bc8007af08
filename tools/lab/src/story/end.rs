//! The ends of a lab's traffic: pods, nodes as hosts, and outside hosts.

use std::{net::IpAddr, sync::Arc, time::Duration};

use super::{Inner, address, or_fail};
use crate::{
    mesh::Service,
    netns::Netns,
    ping::{Ping, PingError},
    process::{Place, Program},
    site::Cable,
    spec::{PodName, Protocol},
    state,
    stream::{Stream, StreamError},
};

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}

/// Something that sends and receives in a lab.
pub trait End {
    /// Its name, for messages.
    fn label(&self) -> String;

    /// Its network namespace.
    fn netns(&self) -> Arc<Netns>;

    /// Its namespaces, to run programs in.
    fn place(&self) -> Place;

    /// Its addresses, in order.
    fn addresses(&self) -> Vec<IpAddr>;

    /// Its first address of a family; panics where it has none.
    fn address(&self, family: Family) -> IpAddr {
        let found = self
            .addresses()
            .into_iter()
            .find(|address| Family::of(address) == family);
        match found {
            Some(address) => address,
            None => panic!("{} has no address of {family:?}", self.label()),
        }
    }

    /// Pings every address of `to` whose family this end has too; panics where one is silent.
    fn ping(&self, to: &dyn End) {
        let own = self.addresses();
        let reachable = to
            .addresses()
            .into_iter()
            .filter(|address| own.iter().any(|own| Family::of(own) == Family::of(address)));
        for address in reachable {
            if let Err(error) = self.try_ping(address) {
                panic!(
                    "{} does not reach {}: {}",
                    self.label(),
                    to.label(),
                    super::chain(&error)
                );
            }
        }
    }

    /// Pings an address.
    ///
    /// # Errors
    /// [`PingError`] where nobody answers within two seconds.
    fn try_ping(&self, to: IpAddr) -> Result<Duration, PingError> {
        Ping::new(to).send(&self.netns())
    }

    /// Runs a program in its namespaces and returns what it printed; panics where it fails.
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let program = Program::new(program.as_ref(), arguments.iter().copied());
        let said = or_fail(&format!("{program:?}"), program.output(&self.place(), b""));
        String::from_utf8_lossy(&said).into_owned()
    }
}

/// Starts a stream; `canary` marks it where both ends belong to the mesh.
fn stream(
    inner: &Inner,
    near: &dyn End,
    far: &dyn End,
    protocol: Protocol,
    family: Family,
    marked: bool,
) -> Result<Stream, StreamError> {
    let canary = if marked {
        inner.next_canary()
    } else {
        [0x5a; 16]
    };
    Stream::between(
        &near.netns(),
        &far.netns(),
        protocol,
        far.address(family),
        canary,
    )
}

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    inner: Arc<Inner>,
    name: PodName,
}

impl Pod {
    pub(super) fn new(inner: &Arc<Inner>, name: PodName) -> Self {
        Self {
            inner: Arc::clone(inner),
            name,
        }
    }

    /// Its name.
    pub fn name(&self) -> &PodName {
        &self.name
    }

    /// The node it runs on.
    pub fn node(&self) -> Node {
        let node = self.inner.site(|site| {
            or_fail(
                "the pod is there",
                site.pod(&self.name).map(|pod| pod.node.clone()),
            )
        });
        Node::new(&self.inner, node.as_str())
    }

    /// A TCP stream to another pod, by its first address of a family that both have.
    pub fn connect(&self, to: &Pod) -> Stream {
        let own = self.addresses();
        let has = |a: &IpAddr| own.iter().any(|own| Family::of(own) == Family::of(a));
        let Some(address) = to.addresses().into_iter().find(has) else {
            panic!("{} and {} share no family", self.label(), to.label());
        };
        self.stream(to, Protocol::Tcp, Family::of(&address))
    }

    /// A stream to a pod, or to a member's own address. Its records carry the lab's canary.
    pub fn stream(&self, to: &dyn End, protocol: Protocol, family: Family) -> Stream {
        let stream = stream(&self.inner, self, to, protocol, family, true);
        or_fail(
            &format!("{} streams to {}", self.label(), to.label()),
            stream,
        )
    }

    /// A stream to a host that is no member: nobody's business, so without canary.
    pub fn stream_outside(&self, to: &Outside, protocol: Protocol, family: Family) -> Stream {
        let stream = stream(&self.inner, self, to, protocol, family, false);
        or_fail(
            &format!("{} streams to {}", self.label(), to.label()),
            stream,
        )
    }
}

impl End for Pod {
    fn label(&self) -> String {
        self.name.to_string()
    }

    fn netns(&self) -> Arc<Netns> {
        self.inner.site(|site| {
            let netns = or_fail("the pod is there", site.pod(&self.name))
                .netns
                .clone();
            or_fail("the pod's namespace", site.space(&netns))
        })
    }

    fn place(&self) -> Place {
        Place {
            netns: self.netns().name().to_owned(),
            mounts: None,
        }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.inner.site(|site| {
            or_fail("the pod is there", site.pod(&self.name))
                .addresses
                .clone()
        })
    }
}

/// A node, as the host it is.
#[derive(Clone, Debug)]
pub struct Node {
    inner: Arc<Inner>,
    name: String,
}

impl Node {
    pub(super) fn new(inner: &Arc<Inner>, name: &str) -> Self {
        Self {
            inner: Arc::clone(inner),
            name: name.to_owned(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its pods.
    pub fn pods(&self) -> Vec<Pod> {
        let names: Vec<PodName> = self.inner.site(|site| {
            let pods = site
                .state()
                .pods
                .iter()
                .filter(|pod| pod.node.as_str() == self.name);
            pods.map(|pod| pod.pod.full_name()).collect()
        });
        names
            .into_iter()
            .map(|name| Pod::new(&self.inner, name))
            .collect()
    }

    /// Its first pod.
    pub fn pod(&self) -> Pod {
        let Some(pod) = self.pods().into_iter().next() else {
            panic!("{} has no pod", self.name);
        };
        pod
    }

    /// A TCP stream from its first pod to the first pod of another node.
    pub fn connect(&self, to: &Node) -> Stream {
        self.pod().connect(&to.pod())
    }

    /// A stream from the host itself to a pod. Its records carry the lab's canary.
    pub fn stream(&self, to: &Pod, protocol: Protocol, family: Family) -> Stream {
        let stream = stream(&self.inner, self, to, protocol, family, true);
        or_fail(&format!("{} streams to {}", self.name, to.label()), stream)
    }

    /// Gives the first device another address; everybody's routes follow.
    pub fn change_address(&self, new: &str) {
        let new = address(new);
        self.inner
            .site(|site| or_fail("the address changes", site.change_address(&self.name, new)));
        let mut watch = self.inner.watch();
        watch.territory.members.insert(new);
        for sniffer in watch.sniffers.values() {
            or_fail(
                "the sniffer learns",
                sniffer.set_territory(watch.territory.clone()),
            );
        }
    }

    /// Pulls the cable of its first device.
    pub fn unplug(&self) {
        self.cable(Cable::Out);
    }

    /// Puts the cable of its first device back.
    pub fn plug(&self) {
        self.cable(Cable::In);
    }

    fn cable(&self, cable: Cable) {
        let set = self
            .inner
            .site(|site| site.set_cable(&self.name, "eth0", cable));
        or_fail("the cable", set);
    }

    /// Kills a service of the node without warning.
    pub fn kill(&self, service: Service) {
        or_fail(
            "the service is killed",
            self.inner.site(|site| site.kill(&self.name, service)),
        );
    }

    /// Starts a service again and waits until it is ready.
    pub fn restart(&self, service: Service) {
        or_fail(
            "the service starts",
            self.inner.site(|site| site.restart(&self.name, service)),
        );
    }
}

impl End for Node {
    fn label(&self) -> String {
        self.name.clone()
    }

    fn netns(&self) -> Arc<Netns> {
        host_netns(&self.inner, &self.name)
    }

    fn place(&self) -> Place {
        host_place(&self.inner, &self.name)
    }

    fn addresses(&self) -> Vec<IpAddr> {
        host_addresses(&self.inner, &self.name)
    }
}

/// A host that is no member.
#[derive(Clone, Debug)]
pub struct Outside {
    inner: Arc<Inner>,
    name: String,
}

impl Outside {
    pub(super) fn new(inner: &Arc<Inner>, name: &str) -> Self {
        Self {
            inner: Arc::clone(inner),
            name: name.to_owned(),
        }
    }

    /// A stream to anybody, without canary.
    pub fn stream(&self, to: &dyn End, protocol: Protocol, family: Family) -> Stream {
        let stream = stream(&self.inner, self, to, protocol, family, false);
        or_fail(&format!("{} streams to {}", self.name, to.label()), stream)
    }
}

impl End for Outside {
    fn label(&self) -> String {
        self.name.clone()
    }

    fn netns(&self) -> Arc<Netns> {
        host_netns(&self.inner, &self.name)
    }

    fn place(&self) -> Place {
        host_place(&self.inner, &self.name)
    }

    fn addresses(&self) -> Vec<IpAddr> {
        host_addresses(&self.inner, &self.name)
    }
}

fn host_netns(inner: &Inner, name: &str) -> Arc<Netns> {
    inner.site(|site| {
        let name = or_fail("the host is there", site.host(name)).name.clone();
        let netns = state::host_netns(site.name(), &name);
        or_fail("the host's namespace", site.space(&netns))
    })
}

fn host_place(inner: &Inner, name: &str) -> Place {
    inner.site(|site| {
        let name = or_fail("the host is there", site.host(name)).name.clone();
        site.state().place(&name)
    })
}

fn host_addresses(inner: &Inner, name: &str) -> Vec<IpAddr> {
    inner.site(|site| or_fail("the host is there", site.host(name)).addresses())
}
