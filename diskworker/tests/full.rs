//! Full disks. Whoever writes is told; what was there stays readable; nothing acknowledged is lost; removing is possible;
//! and when there is room again the worker goes on by itself.

mod brim;
mod fills;
mod follows;
mod start;
