//! (module content)
