//! How the programs treat memory they no longer need.
//!
//! A walk of a large catalog takes tens of megabytes for a moment. glibc's allocator keeps what is freed, in an arena for
//! each thread, and raises the size from which it asks the kernel for pages of their own. With 100,000 contents an idle
//! host had 177 MB that way, and 140 MB with what is set here. FreeBSD's jemalloc returns pages by itself.
//!
//! What lies between what is still used it keeps even then: 180 of 322 MB after 190,000 files were made. So that is given back when the
//! program has nothing to do.
//!
//! The buffers that contents travel in, 256 KiB each, must not be large in this sense: pages taken from the kernel anew for each
//! message were a sixth of what it cost to read a remote file.

// The calls to the allocator, here and in `idle`.
#![allow(unsafe_code)]

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod idle;

/// Give memory back to the system early. To be called once, before there are threads.
pub fn return_early() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const ARENAS: nix::libc::c_int = 2;
        /// From this size on memory comes from the kernel, and goes back at once.
        const LARGE_BYTES: nix::libc::c_int = 1 << 20;
        /// Of each arena, at its end.
        const KEPT_BYTES: nix::libc::c_int = 8 << 20;
        // SAFETY: mallopt only sets numbers of the allocator; no thread but this one exists yet.
        unsafe {
            nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS);
            nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, LARGE_BYTES);
            nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        }
    }
}

/// From now on give back what the allocator keeps whenever the program has worked and come to rest. To be called once; takes a thread
/// where there is something to do for it. Without one nothing is given back.
pub fn give_back_when_idle() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    idle::watch();
}
