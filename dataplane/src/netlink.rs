//! Netlink, as little of it as the targets need: attributes out and in, one blocking socket.
//!
//! The kernel answers requests before `send` returns, so a request's replies are simply read until
//! none is left; only dumps are read until their end mark. One codec serves the families we speak
//! (`NETLINK_ROUTE`, `NETLINK_NETFILTER`, `NETLINK_GENERIC`): the format is rtnetlink(7)'s
//! type-length-value in all.

mod attribute;
mod generic;
mod message;
mod socket;

pub(crate) use attribute::{Attributes, address, text, u16_ne, u32_be, u32_ne, u64_ne};
pub(crate) use generic::{Family, family};
pub(crate) use message::{Message, Received, flag, messages};
pub(crate) use socket::{NetlinkError, Protocol, Refusal, Socket, Traffic};
