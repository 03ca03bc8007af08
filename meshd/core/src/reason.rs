//! Why something that a node says about itself is not used.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use model::{Family, NodeName, PublicKey};

/// Why a claim is not used, or a peer not reached. Never an error: its neighbours go on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The record cannot be read.
    RecordUnusable(String),
    /// The published key is no key.
    KeyUnusable(String),
    /// The node publishes no key for this family.
    NoKey(Family),
    /// The key is our own.
    KeyIsOurs(PublicKey),
    /// Nobody granted the key yet.
    KeyNotGranted(PublicKey),
    /// The key was granted to another node.
    KeyGrantedToOther(PublicKey, NodeName),
    /// Several nodes publish the key and none was granted it.
    KeyContested(PublicKey),
    /// We have no device that carries this family to it.
    NoDevice(Family),
    /// No endpoint of it is granted and of a family that our underlay has.
    NoEndpoint,
    /// Nobody granted the address.
    AddressNotGranted(IpAddr),
    /// The address was granted to another node.
    AddressGrantedToOther(IpAddr, NodeName),
    /// Several nodes publish the address and none was granted it.
    AddressContested(IpAddr),
    /// The address is our own.
    AddressIsOurs(IpAddr),
    /// The address is a pod's.
    AddressInsideBlock(IpAddr),
    /// The address is none that a node can have on an underlay.
    AddressUnusable(IpAddr),
    /// The block is inside no pool.
    BlockOutsidePools(IpNet),
    /// The block is inside more than one pool.
    BlockInTwoPools(IpNet),
    /// The block has not the size of its pool's blocks.
    BlockSize(IpNet),
    /// The block is in a pool of service addresses.
    BlockOfServices(IpNet),
    /// The tunnel address is in no block of the node.
    TunnelAddressForeign(IpAddr),
    /// It did not move for thirty seconds while others did.
    Lagging,
    /// No handshake was completed yet.
    NoHandshake,
    /// Encryption is not asked for in this family.
    NotCovered(Family),
}

impl Reason {
    /// Returns the reason's name for metrics.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::RecordUnusable(_) => "record_unusable",
            Self::KeyUnusable(_) => "key_unusable",
            Self::NoKey(_) => "no_key",
            Self::KeyIsOurs(_) => "key_is_ours",
            Self::KeyNotGranted(_) => "key_not_granted",
            Self::KeyGrantedToOther(..) => "key_granted_to_other",
            Self::KeyContested(_) => "key_contested",
            Self::NoDevice(_) => "no_device",
            Self::NoEndpoint => "no_endpoint",
            Self::AddressNotGranted(_) => "address_not_granted",
            Self::AddressGrantedToOther(..) => "address_granted_to_other",
            Self::AddressContested(_) => "address_contested",
            Self::AddressIsOurs(_) => "address_is_ours",
            Self::AddressInsideBlock(_) => "address_inside_block",
            Self::AddressUnusable(_) => "address_unusable",
            Self::BlockOutsidePools(_) => "block_outside_pools",
            Self::BlockInTwoPools(_) => "block_in_two_pools",
            Self::BlockSize(_) => "block_size",
            Self::BlockOfServices(_) => "block_of_services",
            Self::TunnelAddressForeign(_) => "tunnel_address_foreign",
            Self::Lagging => "lagging",
            Self::NoHandshake => "no_handshake",
            Self::NotCovered(_) => "not_covered",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RecordUnusable(why) => write!(f, "its record is not used: {why}"),
            Self::KeyUnusable(why) => write!(f, "its key is not used: {why}"),
            Self::NoKey(family) => write!(f, "it publishes no key for {}", name(*family)),
            Self::KeyIsOurs(_) => write!(f, "it publishes our own key"),
            Self::KeyNotGranted(key) => write!(f, "nobody granted it the key {key}"),
            Self::KeyGrantedToOther(key, node) => {
                write!(f, "its key {key} was granted to node {node}")
            }
            Self::KeyContested(key) => write!(f, "several nodes publish the key {key}"),
            Self::NoDevice(family) => write!(f, "no device of ours carries {}", name(*family)),
            Self::NoEndpoint => write!(f, "no granted endpoint of it can be reached from here"),
            Self::AddressNotGranted(address) => write!(f, "nobody granted it {address}"),
            Self::AddressGrantedToOther(address, node) => {
                write!(f, "its address {address} was granted to node {node}")
            }
            Self::AddressContested(address) => write!(f, "several nodes publish {address}"),
            Self::AddressIsOurs(address) => write!(f, "it publishes our own address {address}"),
            Self::AddressInsideBlock(address) => write!(f, "its address {address} is a pod's"),
            Self::AddressUnusable(address) => write!(f, "no node can have the address {address}"),
            Self::BlockOutsidePools(block) => write!(f, "its block {block} is in no pool"),
            Self::BlockInTwoPools(block) => write!(f, "its block {block} is in several pools"),
            Self::BlockSize(block) => write!(f, "its block {block} has not its pool's block size"),
            Self::BlockOfServices(block) => {
                write!(f, "its block {block} is in a pool of service addresses")
            }
            Self::TunnelAddressForeign(address) => {
                write!(f, "its tunnel address {address} is in no block of it")
            }
            Self::Lagging => write!(f, "it did not move for 30 s while others did"),
            Self::NoHandshake => write!(f, "no handshake yet"),
            Self::NotCovered(family) => write!(f, "{} is not encrypted", name(*family)),
        }
    }
}

const fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}
