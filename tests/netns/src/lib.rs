//! Is it true on Linux? Stories in network namespaces; see `tests/`.
//!
//! Each file is one topology, drawn on top, and what must hold in it. They need root, touch nothing but
//! namespaces of their own, and may all run at once. Assertions ask the kernel or the wire, never our
//! own code; dropping a [`lab::Lab`] asserts that nothing leaked and that nothing is left behind.
//!
//! ```text
//! Mesh     a lab whose meshd runs: enable, disable, and what each agent says
//! Traffic  streams between all that may speak, and what became of them
//! Download streams that the server carries, and the client only hears
//! Kernel   what meshd wrote into one node's kernel, as the distribution's own tools print it
//! service  Kubernetes services, as kube-proxy's rules
//! kube_proxy kube-proxy itself
//! Container a container that meshd-cni attaches
//! Ask      what must come back, and what must not
//! Firewalld firewalld itself, on a bus of one node's own
//! NetworkManager the same of NetworkManager
//! ```

pub use ask::Ask;
pub use container::{Container, Said};
pub use download::{Crowd, Download, Server, sprinkle};
pub use firewalld::Firewalld;
pub use foreign::{await_firewall, condition, set_foreign_firewalls};
pub use kernel::{Kernel, Sessions};
pub use mesh::{
    Encryption, Mesh, await_fact, await_settled, await_summary, lan, peer, programs,
    tunnel_addresses,
};
pub use networkmanager::NetworkManager;
pub use traffic::{MOST_GAP, Traffic};

mod ask;
mod container;
mod download;
mod firewalld;
mod foreign;
mod kernel;
pub mod kube_proxy;
mod mesh;
mod networkmanager;
pub mod service;
mod traffic;
mod waiting;
