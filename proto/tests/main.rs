//! Formats that other processes, other hosts and our own past depend on.

mod formats;
