//! The allocator that counts, for [`crate::meter`].
#![expect(
    unsafe_code,
    reason = "an allocator is unsafe by its nature; this one counts and hands on"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local! {
    /// Bytes that this thread allocated and did not free; what another thread frees is not seen.
    static HELD: Cell<isize> = const { Cell::new(0) };
    /// The most since the last reset.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is handed on unchanged to the system's allocator; the counters are plain cells of the thread
// without destructors, so touching them neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`, which is the system's too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the pointer came from `alloc` above, so from the system's, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the pointer came from the system's allocator with this layout; the caller promises the rest.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn count(bytes: isize) {
    // A thread that ends has no counters any more, and nobody who reads them.
    let _: Result<(), std::thread::AccessError> = HELD.try_with(|held| {
        let now = held.get() + bytes;
        held.set(now);
        let _: Result<(), std::thread::AccessError> =
            PEAK.try_with(|peak| peak.set(peak.get().max(now)));
    });
}

/// Forgets the past peak; returns what is held now.
pub(crate) fn reset_peak() -> isize {
    let held = HELD.get();
    PEAK.set(held);
    held
}

/// The most that was held since [`reset_peak`].
pub(crate) fn peak() -> isize {
    PEAK.get()
}
