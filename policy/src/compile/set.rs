//! Sets: whom selectors, services and named ports mean, shared by all rules that say the same.
//!
//! A set has a name made of what it stands for, so that its members may change while the rules stay. Addresses alone
//! sit in a hash set; where a network is among them it is an interval set, whose elements never overlap.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use model::{
    Family, Selector,
    nft::{Element, NftFamily, SetKey, SetKind},
    policy::{Protocol, ServiceRef},
};

use super::{Refusal, Ruleset, Scene, name};
use crate::cluster::Backend;

/// The sets that the rules written so far speak of.
pub(super) struct Sets<'a> {
    scene: &'a Scene,
    /// What is in each.
    found: BTreeMap<String, Content>,
    /// The sets of selectors that have been asked for: each looks at every member once.
    selected: BTreeMap<(Selector, Family), String>,
}

/// What is in a set.
struct Content {
    kind: SetKind,
    elements: BTreeSet<Element>,
}

/// One side of a rule that names ports.
pub(super) struct Named<'a> {
    /// The ports' names, sorted.
    pub(super) names: BTreeSet<&'a str>,
    /// Whose ports; `None` is everybody's.
    pub(super) selector: Option<&'a Selector>,
    /// Of which protocol; `None` is any.
    pub(super) protocol: Option<Protocol>,
}

impl<'a> Sets<'a> {
    pub(super) const fn new(scene: &'a Scene) -> Self {
        Self {
            scene,
            found: BTreeMap::new(),
            selected: BTreeMap::new(),
        }
    }

    /// Returns the name of the set of all that a selector selects in a family.
    pub(super) fn selector(
        &mut self,
        selector: &Selector,
        family: Family,
    ) -> Result<String, Refusal> {
        let asked = (selector.clone(), family);
        if let Some(name) = self.selected.get(&asked) {
            return Ok(name.clone());
        }
        let members = self.scene.members.iter();
        let nets: Vec<IpNet> = members
            .filter(|member| selector.matches(&member.labels))
            .flat_map(|member| member.nets.iter().copied())
            .filter(|net| Family::of_net(net) == family)
            .collect();

        let name = self.addresses("selected", &selector.to_string(), family, nets)?;
        self.selected.insert(asked, name.clone());

        Ok(name)
    }

    /// Returns the name of the set of networks of a family.
    pub(super) fn nets(&mut self, nets: &[IpNet], family: Family) -> Result<String, Refusal> {
        let nets = merged(nets.iter().copied());
        let text: Vec<String> = nets.iter().map(IpNet::to_string).collect();

        self.addresses("nets", &text.join(" "), family, nets)
    }

    /// Returns the name of the set of addresses behind a service.
    pub(super) fn sources(
        &mut self,
        service: &ServiceRef,
        family: Family,
    ) -> Result<String, Refusal> {
        let backends = self.backends(service);
        let addresses = backends.map(|backend| backend.address);
        let nets = addresses
            .filter(|address| Family::of(*address) == family)
            .map(IpNet::from)
            .collect();
        let text = format!("{}/{}", service.namespace, service.name);

        self.addresses("answering", &text, family, nets)
    }

    /// Returns the name of the set of addresses and ports behind a service.
    pub(super) fn destinations(
        &mut self,
        service: &ServiceRef,
        family: Family,
    ) -> Result<String, Refusal> {
        let elements = self
            .backends(service)
            .filter(|backend| Family::of(backend.address) == family)
            .map(|backend| Element::AddressPort(backend.address, backend.protocol.0, backend.port))
            .collect();
        let text = format!("{}/{}", service.namespace, service.name);

        self.put(
            name::hashed(&format!("service{}", number(family)), &text),
            SetKind::AddressPorts(family),
            elements,
        )
    }

    /// Returns the name of the set of addresses and the numbers that ports of these names have there.
    pub(super) fn named(&mut self, named: &Named<'_>, family: Family) -> Result<String, Refusal> {
        let mut elements = BTreeSet::new();
        for member in &self.scene.members {
            if !named
                .selector
                .is_none_or(|selector| selector.matches(&member.labels))
            {
                continue;
            }
            let ports = member.ports.iter().filter(|port| {
                named.names.contains(port.name.as_str())
                    && port.protocol.has_ports()
                    && named
                        .protocol
                        .is_none_or(|protocol| protocol == port.protocol)
            });
            for port in ports {
                elements.extend(
                    addresses(&member.nets, family)
                        .map(|address| Element::AddressPort(address, port.protocol.0, port.port)),
                );
            }
        }
        let protocol = named.protocol.map(|protocol| protocol.0);
        let text = format!("{:?} {protocol:?} {:?}", named.names, named.selector);

        self.put(
            name::hashed(&format!("named{}", number(family)), &text),
            SetKind::AddressPorts(family),
            elements,
        )
    }

    /// Returns the name of the set of ranges of ports, sorted and apart from each other.
    pub(super) fn ports(&mut self, ranges: &[(u16, u16)]) -> Result<String, Refusal> {
        let elements = ranges
            .iter()
            .map(|(first, last)| Element::Ports(*first, *last))
            .collect();

        self.put(
            name::hashed("ports", &format!("{ranges:?}")),
            SetKind::Ports,
            elements,
        )
    }

    /// Adds every set that one of the rules speaks of.
    pub(super) fn write(&self, rows: &mut Ruleset) {
        let spoken_of = rows.spoken_of();
        for (name, content) in &self.found {
            if !spoken_of.contains(name) {
                continue;
            }
            let key = SetKey {
                table: NftFamily::Inet,
                name: name.clone(),
            };
            rows.sets.insert(key.clone(), content.kind);
            let elements = content.elements.iter();
            rows.elements
                .extend(elements.map(|element| (key.clone(), element.clone())));
        }
    }

    fn backends(&self, service: &ServiceRef) -> impl Iterator<Item = &'a Backend> + use<'a> {
        self.scene.services.get(service).into_iter().flatten()
    }

    fn addresses(
        &mut self,
        sort: &str,
        text: &str,
        family: Family,
        nets: Vec<IpNet>,
    ) -> Result<String, Refusal> {
        let all_single = nets.iter().all(|net| net.prefix_len() == family.bits());
        let (kind, elements, sort) = if all_single {
            let addresses = nets.iter().map(|net| Element::Address(net.addr()));
            (
                SetKind::Addresses(family),
                addresses.collect(),
                sort.to_owned(),
            )
        } else {
            let nets = merged(nets).into_iter().map(Element::Net);
            (SetKind::Nets(family), nets.collect(), format!("{sort}net"))
        };

        self.put(
            name::hashed(&format!("{sort}{}", number(family)), text),
            kind,
            elements,
        )
    }

    fn put(
        &mut self,
        name: String,
        kind: SetKind,
        elements: BTreeSet<Element>,
    ) -> Result<String, Refusal> {
        let most = self.scene.options.limits.elements;
        if elements.len() > most {
            return Err(Refusal::TooManyElements {
                found: elements.len(),
                most,
            });
        }
        self.found
            .entry(name.clone())
            .or_insert(Content { kind, elements });

        Ok(name)
    }
}

/// Returns the smallest list of networks that holds the same addresses: none overlaps another.
pub(super) fn merged(nets: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
    let nets: Vec<IpNet> = nets.into_iter().map(|net| net.trunc()).collect();
    let mut merged = IpNet::aggregate(&nets);
    merged.sort();

    merged
}

/// Returns the single addresses of a family: a named port is an endpoint's, and endpoints have no networks.
fn addresses(nets: &[IpNet], family: Family) -> impl Iterator<Item = IpAddr> + '_ {
    nets.iter()
        .filter(move |net| Family::of_net(net) == family && net.prefix_len() == family.bits())
        .map(IpNet::addr)
}

const fn number(family: Family) -> &'static str {
    match family {
        Family::V4 => "4",
        Family::V6 => "6",
    }
}
