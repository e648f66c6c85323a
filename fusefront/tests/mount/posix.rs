//! POSIX.
