//! The local protocol between frontend and worker: framed messages of `local.proto` on a unix stream socket, with
//! passed descriptors. [`frame`] moves frames; [`client`] is the calling side (connect, greet, call).

pub mod client;
pub mod frame;
mod spin;

/// Version both sides must agree on; a worker refuses any other in its answer to Hello.
pub const LOCAL_VERSION: u32 = 3;
