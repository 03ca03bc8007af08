//! Where the mesh's objects live, and who may change them.
//!
//! ```text
//!              ┌ Session ─▶ Authority ─▶ writer thread ─▶ SQLite ─▶ watchers   (in process)
//! trait Store ─┤                 ▲
//!              └ Client ══ TLS ══ Server                                       (over gRPC)
//! ```
//!
//! [`Store`] is the contract; `contract` (feature `contract`) holds the one test suite that every
//! implementation passes. [`Embedded`] keeps objects in SQLite, [`Server`] serves it with mutual
//! TLS 1.3, [`Client`] is the other end, [`watch_all`] turns any store into one stream of events.
//!
//! **Invariants:** every value that implements [`Store`] speaks for exactly one caller, so no write
//! is without an identity; what a node may write is decided in `authority`, within the transaction
//! that writes it; a watcher sees every change after its revision or is told to list again;
//! what was acknowledged is on disk.
//!
//! What it does not do: interpret objects beyond what authority needs, retry writes, order kinds
//! against each other.

mod authority;
mod backend;
mod caller;
mod certificate;
mod client;
#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod credential;
mod embedded;
mod enrol;
mod error;
mod file;
mod lender;
mod message;
mod operation;
mod server;
mod socket;
mod source;
mod token;

#[cfg(feature = "fuzz")]
pub use self::server::{Door, Reply};
pub use self::{
    backend::{List, PageStream, Precondition, Store, WatchEvent, WatchStream},
    caller::{Caller, Identity, Origin},
    client::{Client, Hello},
    credential::{Credential, CredentialError, Installed},
    embedded::{Embedded, OpenError, Options, Session},
    enrol::{EnrolError, Enrolment, enrol},
    error::{Denial, StoreError},
    lender::Lender,
    operation::{Perform, drive, perform},
    server::{Counters, ServeError, Server, ServerOptions},
    source::{StoreEvent, watch_all},
    token::{Token, TokenEntry, TokenError, TokenRequest},
};
