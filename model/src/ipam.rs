//! What a node asks of the authority about addresses in blocks that are not its own, and what it is told.
//!
//! A node writes only its own blocks. Whatever reaches into another's goes through the authority, which knows the
//! node by its certificate and notes it in the allocation: that note is the record of the loan.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::action::AddressRequest;

/// What a node asks of the authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Plea {
    /// Addresses for a pod of the node's, of whichever block has some.
    Lend(AddressRequest),
    /// What a handle of the node's holds in blocks of others is given back.
    TakeBack {
        /// The handle.
        handle: String,
    },
}

/// What the authority answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The handle holds these now, in order.
    Lent(Vec<IpAddr>),
    /// Nothing was lent, for a block became free: claim one and take its addresses.
    BlockFreed,
    /// The handle holds nothing in blocks of others.
    TakenBack,
    /// It will not be done, and why.
    Refused(String),
}
