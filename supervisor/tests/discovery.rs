//! Announcing, in a network namespace of its own.
