//! Tests about the repository itself: what may depend on what, where `unsafe` lives, how long a
//! page is, and that what the documents name exists.
