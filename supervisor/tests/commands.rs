//! What the showing commands print, for people and for programs.
