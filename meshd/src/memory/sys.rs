//! glibc's allocator, by its own knobs.
#![expect(unsafe_code, reason = "the knobs are C functions")]

/// Has every thread take its memory from one heap.
pub(super) fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers and touches nothing but the allocator's own settings, under its lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Fixes the sizes, in bytes, from which on a block is mapped, and from which on a heap's free end is given back.
pub(super) fn keep_thresholds(mapped: i32, spare: i32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: as above.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, mapped);
        libc::mallopt(libc::M_TRIM_THRESHOLD, spare);
    }
    #[cfg(not(target_env = "gnu"))]
    let _unused = (mapped, spare);
}

/// Gives free pages back.
pub(super) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim locks each heap while it walks it, and gives back only what no one holds.
    unsafe {
        libc::malloc_trim(0);
    }
}
