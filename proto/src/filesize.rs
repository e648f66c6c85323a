//! The limit that a shell or service may set on the size of files a process writes (RLIMIT_FSIZE).

use nix::sys::signal::{SigHandler, Signal, signal};

/// Have a write beyond the limit fail with EFBIG, which goes to whoever asked for it. Without this it kills the process: a mount with
/// all that is open in it, or a disk. To be called once, at the start.
#[allow(unsafe_code)]
pub fn fail_instead_of_dying() {
    // SAFETY: no handler is set that could run at a bad moment.
    let ignored = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
    debug_assert!(ignored.is_ok(), "it can be ignored everywhere");
}
