//! Whoever is at the other end of the sockets: strangers, clients that send garbage or nothing, that do not listen, that
//! come in crowds, that ask for what nobody should ask for. The worker refuses, serves everybody else, and changes
//! nothing.

mod crowds;
mod frames;
mod nonsense;
mod requests;
mod strangers;
