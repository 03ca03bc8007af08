//! Is it true on Linux? Stories in network namespaces; see `tests/`.
//!
//! Each file is one topology, drawn on top, and what must hold in it. They need root, touch nothing but
//! namespaces of their own, and may all run at once. Assertions ask the kernel or the wire, never our
//! own code; dropping a [`lab::Lab`] asserts that nothing leaked and that nothing is left behind.
