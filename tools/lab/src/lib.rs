//! x
pub mod layout;
pub mod spec;
