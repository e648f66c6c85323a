//! (module swarm)
