//! The ends of a lab's traffic: pods, nodes as hosts, and outside hosts.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{Inner, address, or_fail};
use crate::{
    agent::AgentError,
    mesh::Service,
    netns::Netns,
    ping::{Ping, PingError},
    poll_until,
    process::{Place, Program},
    site::Cable,
    spec::{PodName, Protocol},
    state,
    stream::{Bulk, Canary, Carried, Ends, Stream, StreamError},
};

/// How long a stopped process may take to stand still.
const STANDSTILL: Duration = Duration::from_secs(5);

/// How long a bulk transfer may take.
const BULK: Duration = Duration::from_secs(30);

/// What streams carry that the sniffers do not look for.
const UNMARKED: Canary = [0x5a; 16];

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
        UNMARKED
    };
    let address = far.address(family);
    Stream::between(
        &near.netns(),
        &far.netns(),
        protocol,
        address,
        canary,
        inner.tick(),
    )
}

/// Starts a stream to a socket that somebody else may answer for, such as a service's.
fn stream_to(
    inner: &Inner,
    near: &dyn End,
    protocol: Protocol,
    to: SocketAddr,
    canary: Canary,
) -> Result<Stream, StreamError> {
    let ends = Ends {
        from: None,
        to,
        canary,
        tick: inner.tick(),
    };
    Stream::to(&near.netns(), protocol, ends)
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

    /// A stream to an address of another end, whichever it is. Its records carry the lab's canary.
    pub fn stream_at(&self, to: &dyn End, protocol: Protocol, address: IpAddr) -> Stream {
        let (near, far) = (self.netns(), to.netns());
        let canary = self.inner.next_canary();
        let stream = Stream::between(&near, &far, protocol, address, canary, self.inner.tick());
        or_fail(&format!("{} streams to {address}", self.label()), stream)
    }

    /// A stream to a socket where an echo server answers already, be it through a translation.
    ///
    /// # Errors
    /// [`StreamError`] where the first record does not come back.
    pub fn stream_to(&self, protocol: Protocol, to: SocketAddr) -> Result<Stream, StreamError> {
        stream_to(&self.inner, self, protocol, to, self.inner.next_canary())
    }

    /// Carries so many bytes to another end and back, as fast as it goes; panics where they are not back,
    /// unchanged, in half a minute. They bear the lab's canary.
    pub fn carry(&self, to: &dyn End, family: Family, bytes: u64) -> Carried {
        let bulk = Bulk {
            to: to.address(family),
            canary: self.inner.next_canary(),
            bytes,
            patience: BULK,
        };
        let carried = bulk.carry(&self.netns(), &to.netns());
        let what = format!("{} carries {bytes} bytes to {}", self.label(), to.label());
        or_fail(&what, carried)
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

    /// A stream to a socket where an echo server answers already, be it through a translation.
    ///
    /// # Errors
    /// [`StreamError`] where the first record does not come back.
    pub fn stream_to(&self, protocol: Protocol, to: SocketAddr) -> Result<Stream, StreamError> {
        stream_to(&self.inner, self, protocol, to, self.inner.next_canary())
    }

    /// As [`Node::stream_to`], without canary: for what a host tells another host.
    ///
    /// # Errors
    /// [`StreamError`] where the first record does not come back.
    pub fn stream_plain_to(
        &self,
        protocol: Protocol,
        to: SocketAddr,
    ) -> Result<Stream, StreamError> {
        stream_to(&self.inner, self, protocol, to, UNMARKED)
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

    /// What its agent says of itself (`GET /v1/status`).
    pub fn status(&self) -> serde_json::Value {
        self.ask("/v1/status")
    }

    /// What its agent says of its peers (`GET /v1/peers`).
    pub fn peers(&self) -> serde_json::Value {
        self.ask("/v1/peers")
    }

    /// Kills a service of the node without warning.
    pub fn kill(&self, service: Service) {
        or_fail(
            "the service is killed",
            self.inner.site(|site| site.kill(&self.name, service)),
        );
    }

    /// Stops a service in its tracks, without ending it; returns once none of its threads runs.
    pub fn freeze(&self, service: Service) {
        self.signal(service, Signal::STOP);
        let process = self
            .inner
            .site(|site| or_fail("the service runs", site.service(&self.name, service)));
        let stands = poll_until(Instant::now() + STANDSTILL, || process.is_stopped());
        assert!(stands, "{service:?} of {} does not stand still", self.name);
    }

    /// Lets a frozen service go on.
    pub fn thaw(&self, service: Service) {
        self.signal(service, Signal::CONT);
    }

    fn signal(&self, service: Service, signal: Signal) {
        let process = self
            .inner
            .site(|site| or_fail("the service runs", site.service(&self.name, service)));
        or_fail("the service takes a signal", process.signal(signal));
    }

    /// What its agent's local API says.
    pub fn ask(&self, path: &str) -> serde_json::Value {
        or_fail(&format!("{} answers", self.name), self.try_ask(path))
    }

    /// What its agent's local API says.
    ///
    /// # Errors
    /// [`AgentError`] where it does not answer, or refuses.
    pub fn try_ask(&self, path: &str) -> Result<serde_json::Value, AgentError> {
        let agent = self.inner.site(|site| {
            let name = or_fail("the node is there", site.host(&self.name))
                .name
                .clone();
            site.agent(&name)
        });
        agent.get(path)
    }

    /// Starts a service with the programs of another folder and waits until it is ready.
    pub fn restart_from(&self, service: Service, folder: &Path) {
        or_fail(
            "the service starts",
            self.inner
                .site(|site| site.restart_from(&self.name, service, folder)),
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

    /// A stream to a socket where an echo server answers already, be it through a translation; without
    /// canary.
    ///
    /// # Errors
    /// [`StreamError`] where the first record does not come back.
    pub fn stream_plain_to(
        &self,
        protocol: Protocol,
        to: SocketAddr,
    ) -> Result<Stream, StreamError> {
        stream_to(&self.inner, self, protocol, to, UNMARKED)
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
