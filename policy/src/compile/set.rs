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
    policy::{NamedPort, Protocol, ServiceRef},
};

use super::{Refusal, Ruleset, Scene, name};
use crate::cluster::Backend;

/// Gives the name of the set that holds what a rule means.
pub(crate) type Naming<'a> = dyn FnMut(Meaning) -> Result<String, Refusal> + 'a;

/// What a set stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Meaning {
    /// All that a selector selects in a family.
    Selected(Selector, Family),
    /// Networks of a family that a rule names, merged.
    Nets(Vec<IpNet>, Family),
    /// The addresses behind a service.
    Answering(ServiceRef, Family),
    /// The addresses and ports behind a service.
    Serving(ServiceRef, Family),
    /// The addresses of endpoints, and the numbers that ports of these names have there.
    Named {
        /// The ports' names.
        names: BTreeSet<String>,
        /// Whose ports; `None` is everybody's.
        selector: Option<Selector>,
        /// Of which protocol; `None` is any.
        protocol: Option<Protocol>,
        /// Of which family the addresses are.
        family: Family,
    },
    /// Ranges of ports, sorted and apart from each other.
    Ports(Vec<(u16, u16)>),
}

/// Whether a set of addresses has networks in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Single addresses alone.
    Single,
    /// Networks too.
    Wide,
}

impl Meaning {
    /// Returns the set's name and kind.
    pub(crate) fn title(&self, shape: Shape) -> (String, SetKind) {
        let of = |sort: &str, family, text: &str| {
            let (suffix, kind) = match shape {
                Shape::Single => ("", SetKind::Addresses(family)),
                Shape::Wide => ("net", SetKind::Nets(family)),
            };
            let prefix = format!("{sort}{suffix}{}", number(family));

            (name::hashed(&prefix, text), kind)
        };
        match self {
            Self::Selected(selector, family) => of("selected", *family, &selector.to_string()),
            Self::Nets(nets, family) => {
                let text: Vec<String> = nets.iter().map(IpNet::to_string).collect();
                of("nets", *family, &text.join(" "))
            }
            Self::Answering(service, family) => of("answering", *family, &path(service)),
            Self::Serving(service, family) => {
                let prefix = format!("service{}", number(*family));
                let name = name::hashed(&prefix, &path(service));
                (name, SetKind::AddressPorts(*family))
            }
            Self::Named {
                names,
                selector,
                protocol,
                family,
            } => {
                let protocol = protocol.map(|protocol| protocol.0);
                let text = format!("{names:?} {protocol:?} {selector:?}");
                let name = name::hashed(&format!("named{}", number(*family)), &text);
                (name, SetKind::AddressPorts(*family))
            }
            Self::Ports(ranges) => {
                let name = name::hashed("ports", &format!("{ranges:?}"));
                (name, SetKind::Ports)
            }
        }
    }

    /// Returns the elements that an endpoint's or network set's ports add, of a set of named ports.
    pub(crate) fn pairs<'a>(
        &'a self,
        nets: &'a [IpNet],
        ports: &'a [NamedPort],
    ) -> impl Iterator<Item = Element> + 'a {
        let wanted = match self {
            Self::Named {
                names,
                protocol,
                family,
                ..
            } => Some((names, *protocol, *family)),
            Self::Selected(..)
            | Self::Nets(..)
            | Self::Answering(..)
            | Self::Serving(..)
            | Self::Ports(_) => None,
        };

        wanted
            .into_iter()
            .flat_map(move |(names, protocol, family)| {
                let ports = ports.iter().filter(move |port| {
                    names.contains(&port.name)
                        && port.protocol.has_ports()
                        && protocol.is_none_or(|protocol| protocol == port.protocol)
                });
                ports.flat_map(move |port| {
                    addresses(nets, family)
                        .map(|address| Element::AddressPort(address, port.protocol.0, port.port))
                })
            })
    }

    /// Returns what is in a set that speaks of no endpoint, with its shape. `backends` are those of the service that
    /// it speaks of.
    pub(crate) fn fixed(&self, backends: &[Backend]) -> (Shape, BTreeSet<Element>) {
        let of = |family: &Family| {
            let family = *family;
            backends
                .iter()
                .filter(move |backend| Family::of(backend.address) == family)
        };
        let elements = match self {
            Self::Nets(nets, family) => return content(nets.clone(), *family),
            Self::Ports(ranges) => ranges
                .iter()
                .map(|(first, last)| Element::Ports(*first, *last))
                .collect(),
            Self::Answering(_, family) => of(family)
                .map(|backend| Element::Address(backend.address))
                .collect(),
            Self::Serving(_, family) => of(family)
                .map(|backend| {
                    Element::AddressPort(backend.address, backend.protocol.0, backend.port)
                })
                .collect(),
            Self::Selected(..) | Self::Named { .. } => BTreeSet::new(),
        };

        (Shape::Single, elements)
    }
}

/// The sets that the rules written so far speak of.
pub(super) struct Sets<'a> {
    scene: &'a Scene,
    /// What is in each.
    found: BTreeMap<String, Content>,
    /// The sets that have been asked for: each looks at every member once.
    asked: BTreeMap<Meaning, String>,
}

/// What is in a set.
struct Content {
    kind: SetKind,
    elements: BTreeSet<Element>,
}

impl<'a> Sets<'a> {
    pub(super) const fn new(scene: &'a Scene) -> Self {
        Self {
            scene,
            found: BTreeMap::new(),
            asked: BTreeMap::new(),
        }
    }

    /// Returns the name of the set of a meaning.
    pub(super) fn name(&mut self, meaning: Meaning) -> Result<String, Refusal> {
        if let Some(name) = self.asked.get(&meaning) {
            return Ok(name.clone());
        }
        let (shape, elements) = self.content(&meaning);
        let most = self.scene.options.limits.elements;
        if elements.len() > most {
            return Err(Refusal::TooManyElements {
                found: elements.len(),
                most,
            });
        }
        let (name, kind) = meaning.title(shape);
        self.found.insert(name.clone(), Content { kind, elements });
        self.asked.insert(meaning, name.clone());

        Ok(name)
    }

    fn content(&self, meaning: &Meaning) -> (Shape, BTreeSet<Element>) {
        let members = &self.scene.members;
        match meaning {
            Meaning::Selected(selector, family) => {
                let nets = members
                    .iter()
                    .filter(|member| selector.matches(&member.labels))
                    .flat_map(|member| member.nets.iter().copied())
                    .filter(|net| Family::of_net(net) == *family);
                content(nets.collect(), *family)
            }
            Meaning::Named { selector, .. } => {
                let owners = members.iter().filter(|member| {
                    let mut selectors = selector.iter();
                    selectors.all(|selector| selector.matches(&member.labels))
                });
                let pairs = owners.flat_map(|member| meaning.pairs(&member.nets, &member.ports));
                (Shape::Single, pairs.collect())
            }
            Meaning::Answering(service, _) | Meaning::Serving(service, _) => {
                let backends = self.scene.services.get(service);
                meaning.fixed(backends.map_or(&[][..], Vec::as_slice))
            }
            Meaning::Nets(..) | Meaning::Ports(_) => meaning.fixed(&[]),
        }
    }

    /// Adds every set that one of the rules speaks of.
    pub(super) fn write(&self, rows: &mut Ruleset) {
        let spoken_of = rows.spoken_of();
        for (name, content) in &self.found {
            if !spoken_of.contains(name.as_str()) {
                continue;
            }
            let key = key(name);
            rows.sets.insert(key.clone(), content.kind);
            let elements = content.elements.iter();
            rows.elements
                .extend(elements.map(|element| (key.clone(), element.clone())));
        }
    }
}

/// Returns the key of a set of ours.
pub(crate) fn key(name: &str) -> SetKey {
    SetKey {
        table: NftFamily::Inet,
        name: name.into(),
    }
}

fn content(nets: Vec<IpNet>, family: Family) -> (Shape, BTreeSet<Element>) {
    if nets.iter().all(|net| net.prefix_len() == family.bits()) {
        let addresses = nets.iter().map(|net| Element::Address(net.addr()));
        return (Shape::Single, addresses.collect());
    }
    let nets = merged(nets).into_iter().map(Element::Net);

    (Shape::Wide, nets.collect())
}

/// Returns the smallest list of networks that holds the same addresses: none overlaps another.
pub(crate) fn merged(nets: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
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

fn path(service: &ServiceRef) -> String {
    format!("{}/{}", service.namespace, service.name)
}

const fn number(family: Family) -> &'static str {
    match family {
        Family::V4 => "4",
        Family::V6 => "6",
    }
}
