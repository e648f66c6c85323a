//! (module folder)
