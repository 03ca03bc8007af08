//! The node under test: one device, and as many peers as are asked for.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context, bail};
use dataplane::{
    Implementations, Kernel, NetlinkTraffic, Outcome, PeerTarget, PrivateKey, Reconciler, Target,
    TunnelTarget, Userspace,
};
use ipnet::IpNet;
use model::{
    Change, InterfaceName, Moment, PublicKey, Table,
    plan::{Peer, Tunnel},
    resource::mesh_configuration::Backend,
};
use zeroize::Zeroizing;

/// Blocks of each peer.
pub(crate) const BLOCKS: u32 = 10;

/// The port of each peer; the address is its own, since what comes from one source is limited.
pub(crate) const PORT: u16 = 51821;

/// The node's own private key.
const SECRET: [u8; 32] = [77; 32];

/// Who carries the packets.
#[derive(Clone, Debug)]
pub(crate) enum Carrier {
    /// The kernel.
    Kernel,
    /// The tunnel service behind this socket.
    Meshwire(PathBuf),
}

/// A device with peers, as an agent keeps it.
pub(crate) struct Hub {
    tunnels: TunnelTarget,
    pub(crate) peers: Reconciler<PeerTarget>,
    pub(crate) wanted: Table<(InterfaceName, PublicKey), Peer>,
    pub(crate) traffic: NetlinkTraffic,
}

impl Hub {
    /// Makes the device, without peers.
    pub(crate) fn new(carrier: &Carrier) -> anyhow::Result<Self> {
        let (there, _) = implementations(carrier)?;
        let mut tunnels = TunnelTarget::open(there, Box::new(keyring))?;
        let tunnel = Tunnel {
            key: public(&SECRET)?,
            port: 51820,
            mark: 0x0020_0000,
            mtu: 1420,
            backend: Backend::Auto,
            threaded: false,
        };
        let absent = tunnels.apply(&[Change::Set(device()?, tunnel)])?;
        if let Some(absent) = absent.first() {
            bail!("{}", absent.reason);
        }
        let (there, traffic) = implementations(carrier)?;
        let mut target = PeerTarget::new(there);
        target.own([device()?]);

        Ok(Self {
            tunnels,
            peers: Reconciler::new("peers", target),
            wanted: Table::default(),
            traffic,
        })
    }

    /// Wants so many peers; the next pass programs them.
    pub(crate) fn want(&mut self, count: u32) -> anyhow::Result<()> {
        for index in 0..count {
            self.wanted.set(key(index)?, peer(index)?);
        }

        Ok(())
    }

    /// A pass over the peers.
    pub(crate) fn pass(&mut self) -> anyhow::Result<()> {
        let set = self.peers.set(&mut self.wanted, true, Moment::START);
        let unset = self.peers.unset(Moment::START);
        if (&set, &unset) != (&Outcome::Converged, &Outcome::Converged) {
            bail!("{set:?}, {unset:?}");
        }

        Ok(())
    }

    /// Ends the device.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        self.tunnels.apply(&[Change::Unset(device()?)])?;

        Ok(())
    }
}

fn implementations(carrier: &Carrier) -> anyhow::Result<(Implementations, NetlinkTraffic)> {
    let (socket, preference) = match carrier {
        Carrier::Kernel => (PathBuf::from("/nonexistent"), Backend::Kernel),
        Carrier::Meshwire(socket) => (socket.clone(), Backend::Userspace),
    };
    let kernel = Kernel::open()?;
    let traffic = kernel.traffic();
    let userspace = Userspace::new(socket, "/var/run/wireguard".into());

    Ok((Implementations::new(kernel, userspace, preference), traffic))
}

pub(crate) fn device() -> anyhow::Result<InterfaceName> {
    "wg.bench".parse().context("a name that is one")
}

pub(crate) fn key(index: u32) -> anyhow::Result<(InterfaceName, PublicKey)> {
    Ok((device()?, public(&secret(index))?))
}

/// Returns a peer with its blocks, somewhere on this machine.
pub(crate) fn peer(index: u32) -> anyhow::Result<Peer> {
    let blocks = (0..BLOCKS).map(|block| {
        let first = 0x0a00_0000 + (index * BLOCKS + block) * 64;
        IpNet::new(Ipv4Addr::from(first).into(), 26)
    });

    Ok(Peer {
        endpoint: SocketAddr::new(address(index).into(), PORT),
        keepalive: 0,
        allowed_ips: blocks.collect::<Result<_, _>>()?,
    })
}

/// Returns where a peer is: at an address of this machine.
pub(crate) fn address(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x7f01_0001 + index)
}

/// Returns the private key of a peer.
pub(crate) fn secret(index: u32) -> [u8; 32] {
    let mut bytes = [7; 32];
    // Not in the first byte, whose low bits no X25519 key has.
    bytes[8..12].copy_from_slice(&index.to_le_bytes());

    bytes
}

pub(crate) fn public(secret: &[u8; 32]) -> anyhow::Result<PublicKey> {
    let public = wire_core::PrivateKey::new(*secret).public_key();

    Ok(PublicKey::new(public.0)?)
}

/// Returns the node's public key.
pub(crate) fn own_key() -> anyhow::Result<PublicKey> {
    public(&SECRET)
}

fn keyring(_: &PublicKey) -> Option<PrivateKey> {
    Some(PrivateKey::new(Zeroizing::new(SECRET)))
}
