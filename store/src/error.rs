//! Why a store did not do what it was asked.

use std::fmt;

use model::{Kind, ObjectKey, resource::FieldError};
use serde::{Deserialize, Serialize};

/// Why a call failed. Travels over gRPC as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum StoreError {
    /// No such object.
    #[error("{0} does not exist")]
    NotFound(ObjectKey),
    /// An object of this key is there already.
    #[error("{0} exists already")]
    AlreadyExists(ObjectKey),
    /// Somebody else changed the object since it was read.
    #[error("{0} was changed by somebody else: read it again")]
    Conflict(ObjectKey),
    /// The revision to watch from is no longer in the log.
    #[error("changes of {0} since that revision are no longer known: list again")]
    Compacted(Kind),
    /// The caller may not do this.
    #[error("refused ({reason}): {message}")]
    Forbidden {
        /// The rule that forbids it.
        reason: Denial,
        /// What was asked, and what would be allowed.
        message: String,
    },
    /// The caller is nobody: no certificate, a revoked or an expired one.
    #[error("not authenticated: {0}")]
    Unauthenticated(String),
    /// The object is not well formed.
    #[error("{0}")]
    Invalid(FieldError),
    /// Something is larger than the store takes.
    #[error("{what} has {bytes} bytes; at most {limit} are taken")]
    TooLarge {
        /// What is too large.
        what: String,
        /// Its size.
        bytes: usize,
        /// The largest that is taken.
        limit: usize,
    },
    /// The caller has too many of something open.
    #[error("too many {what}: at most {limit}")]
    TooMany {
        /// Of what.
        what: String,
        /// The most that are allowed.
        limit: usize,
    },
    /// The store cannot be reached, or stopped while it worked: a write may have happened or not.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The store failed inside; its log says more.
    #[error("the store failed: {0}")]
    Internal(String),
}

macro_rules! denials {
    ($($variant:ident $label:literal $doc:literal;)+) => {
        /// The rule by which a write was refused. Each has a metric label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Denial {
            $(#[doc = $doc] $variant,)+
            /// A rule of a newer server.
            #[serde(other)]
            Other,
        }

        impl Denial {
            /// Every rule, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$variant,)+ Self::Other];

            /// Returns the rule's metric label.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ Self::Other => "other" }
            }
        }
    };
}

denials! {
    AdministratorOnly "administrator-only" "Only an administrator writes this kind, or does this to it.";
    NotYourNode "not-your-node" "The object belongs to, or names, another node.";
    FieldNotYours "field-not-yours" "A node may write some fields of the object; this is not one of them.";
    Labels "labels" "Labels are an administrator's: a node never labels itself into a policy.";
    CreateOnly "create-only" "A claim is created and deleted, never changed.";
    Name "name" "The object's name does not say what it is for.";
    Limit "limit" "The node holds as many of these as it may.";
    AddressNotYours "address-not-yours" "Neither the source of this connection nor inside the underlay's networks.";
    AddressUnusable "address-unusable" "No address that a node can have: loopback, multicast, link-local, unspecified.";
    ServerAddress "server-address" "An address of the server, which only the node on its host may claim.";
    PoolAddress "pool-address" "An address inside an IPPool.";
    Record "record" "The record cannot be read, or was removed.";
    Epoch "epoch" "The record's epoch did not rise.";
    KeyNotGranted "key-not-granted" "No KeyClaim grants the key to this node.";
    AddressNotGranted "address-not-granted" "No AddressClaim grants the address to this node.";
    AddressNotInBlock "address-not-in-block" "The pod's or tunnel device's address is neither of a block of this node nor lent to it.";
    BlockNotInPool "block-not-in-pool" "No enabled pool holds the block at its own block size.";
    BlockSelector "block-selector" "The pool's nodeSelector does not select this node.";
    BlockOverlap "block-overlap" "The block overlaps another one.";
    BlockAffinity "block-affinity" "The block is not affine to this node, or would change hands.";
    BlockSequence "block-sequence" "The block's sequence number did not rise.";
    AddressLent "address-lent" "Another node has borrowed the address.";
    NotYourHandle "not-your-handle" "The handle is another's, or does not say whose it is.";
    BlockInUse "block-in-use" "The block still has addresses in use.";
    TierBuiltIn "tier-built-in" "Every cluster has the tier.";
    TierInUse "tier-in-use" "A policy is in the tier.";
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl StoreError {
    /// Refuses a write by a rule, in words.
    pub(crate) fn denied(reason: Denial, message: impl Into<String>) -> Self {
        Self::Forbidden {
            reason,
            message: message.into(),
        }
    }

    /// Says what is wrong with a field.
    pub(crate) fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::Invalid(FieldError::new(field, message))
    }
}
